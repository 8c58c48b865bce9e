"""How fast a GPU is at what the service does, against its own matrix product and against bare loops."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.results import Figures
from bench.gpu.setting import Setting, Shape
from bench.gpu.work import Compressed, Timed, compressed_by, peak_of
from bench.race import Turns, bare_loop, now, student_without
from modelpress.spec.inventory import Inventory
from modelpress.spec.steps import Quantise
from workers.compression.evaluation.fidelity import compare
from workers.compression.lane import lane_for
from workers.compression.math.sensitivity import measure_all
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.steps import RUNNERS
from workers.compression.steps.work import Work
from workers.compression.training.distillation import distil
from workers.compression.training.settings import DistillationSettings

TERA = 1e12

FOUR_BITS = "iq4_nl"
"""The code of a job at about 4 times fewer bytes."""

BATCHED = 2048
"""Rows below which the decompositions of several matrices are timed together."""


def seconds_of(work: Callable[[], Any], *, repeats: int = 5) -> float:
    """Return the median seconds of `repeats` runs after one that warms up."""
    durations = []
    for _ in range(repeats + 1):
        started = now()
        work()
        durations.append(now() - started)
    return statistics.median(durations[1:])


def product_tflops(setting: Setting, dtype: torch.dtype, rows: int) -> float:
    """Return the TFLOP/s of the device's own product of two square matrices of random numbers."""
    one, other = (torch.randn(rows, rows, device=setting.device, dtype=dtype) for _ in range(2))
    return 2 * rows**3 / seconds_of(lambda: one @ other) / TERA


def ceilings(setting: Setting) -> Figures:
    """Measure what the device can do: matrix products, copies, decompositions, one by one and batched."""
    rows, found = setting.sizes.matrix, Figures()
    for dtype in (torch.bfloat16, torch.float32):
        found[f"{dtype}_product_tflops"] = product_tflops(setting, dtype, rows)
    found["torch.float64_product_tflops"] = product_tflops(setting, torch.float64, rows // 2)
    there = torch.empty(rows, rows, device=setting.device)
    lane = lane_for(setting.device)
    here = lane.empty(there.shape, there.dtype)
    found["copy_on_the_device_gb_per_second"] = 2 * there.nbytes / seconds_of(there.clone) / 1e9
    found["copy_to_the_device_gb_per_second"] = here.nbytes / seconds_of(lambda: lane.to_device({"": here})()) / 1e9
    for size in setting.sizes.decomposed:
        for dtype in (torch.float64, torch.float32):
            found |= _decompositions(setting, size, dtype)
    return found


def _decompositions(setting: Setting, size: int, dtype: torch.dtype) -> Figures:
    """Return the seconds of the decompositions of one positive matrix [size, size], and of five together."""
    square = torch.randn(size, size, device=setting.device, dtype=dtype)
    gram = square @ square.T + torch.eye(size, device=setting.device, dtype=dtype)
    five = gram.expand(5, size, size).contiguous()
    works: dict[str, Callable[[], Any]] = {
        "eigh": lambda: torch.linalg.eigh(gram),
        "eigvalsh": lambda: torch.linalg.eigvalsh(gram),
        "cholesky": lambda: torch.linalg.cholesky(gram),
    }
    if size < BATCHED:
        works["eigvalsh_of_5"] = lambda: torch.linalg.eigvalsh(five)
    return {f"{name}_{size}_{dtype}_seconds": seconds_of(work, repeats=2) for name, work in works.items()}


def job(setting: Setting) -> Figures:
    """Time the stages of a job at 1.3 without training, on SmolLM2-135M."""
    timed, begun = Timed(), now()
    model, ids = _opened(setting, timed)
    with peak_of(setting.device, timed.seconds, "peak_bytes"):
        made = compressed_by(model, "low_rank", setting.sizes.ratio, ids, timed=timed)
    with timed("write"):
        made.write(setting.scratch / "job")
    return _judged(setting, model, made.edited(setting.device, setting.dtype), timed, begun)


def job_in_four_bits(setting: Setting) -> Figures:
    """Time the stages of a job that rounds every matrix to 4.5 bits, about 3.6 times fewer bytes."""
    timed, begun = Timed(), now()
    model, ids = _opened(setting, timed)
    inventory = model.inventory
    with timed("sensitivities"):
        measured = measure_all(model, ids)
    codes = {site.name: FOUR_BITS for site in (inventory.embedding, *inventory.sites) if site.in_features % 32 == 0}
    step, edited = Quantise(format="gguf", codes=codes), EditedModel(model)
    with peak_of(setting.device, timed.seconds, "peak_bytes"), timed("round"):
        for part in RUNNERS[Quantise].run(step, Work(model, edited, ids, measured), ()):
            edited.apply(part)
    return _judged(setting, model, edited, timed, begun)


def _opened(setting: Setting, timed: Timed) -> tuple[StreamedModel, Tensor]:
    """Return SmolLM2-135M, opened, and text for its calibration."""
    with timed("open"):
        model = StreamedModel.open(setting.small, device=setting.device, dtype=setting.dtype)
    return model, setting.windows(*setting.sizes.calibration, model.inventory.vocab_size)


def _judged(setting: Setting, model: StreamedModel, edited: EditedModel, timed: Timed, begun: float) -> Figures:
    """Compare a result with its original, and return the seconds of all stages and since `begun`."""
    _, length = setting.sizes.calibration
    with timed("evaluate"):
        windows = setting.windows(setting.sizes.judged, length, model.inventory.vocab_size, first=200)
        _, found = compare(model, [edited], windows)
    figures: Figures = {"seconds": now() - begun, "divergence": found.divergence, "agreement": found.agreement}
    return timed.seconds | figures


def streamed_middle(setting: Setting) -> Figures:
    """Measure block streaming of a model of 1.1 billion parameters."""
    return _streamed(setting, setting.sizes.middle)


def streamed_large(setting: Setting) -> Figures:
    """Measure block streaming of some blocks of a model of 7 billion parameters."""
    return _streamed(setting, setting.sizes.large)


@torch.no_grad()
def _streamed(setting: Setting, shape: Shape) -> Figures:
    found: Figures = {}
    directory = setting.random_model(shape)
    ids = setting.windows(*setting.sizes.calibration, shape.vocabulary)
    ceiling = product_tflops(setting, setting.dtype, setting.sizes.matrix)
    model = StreamedModel.open(directory, device=setting.device, dtype=setting.dtype)
    block_parameters = _parameters(model.inventory)
    found["block_bytes"] = block_parameters * setting.dtype.itemsize
    forward = 2 * block_parameters * ids.numel() * model.inventory.blocks
    _pass(model, ids)
    with peak_of(setting.device, found, "forward_peak_bytes"):
        started = now()
        busy = _pass(model, ids)
        wall = now() - started
    found |= {
        "tokens_per_second_and_block": ids.numel() * model.inventory.blocks / wall,
        "tflops": forward / wall / TERA,
        "share_of_the_product": forward / wall / TERA / ceiling,
        "busy_share": busy / wall,
    }
    model.ahead = None
    started = now()
    _pass(model, ids)
    found["seconds_without_reading_ahead_over_with"] = (now() - started) / wall
    found |= _compression(setting, directory, ids)
    found["one_block_and_moments_bytes"] = _block_and_moments(model.inventory, setting.dtype)
    return found


def _pass(model: StreamedModel, ids: Tensor) -> float:
    """Pass token ids through all blocks; return the seconds in which blocks computed."""
    with model.embedder() as embed:
        states = [embed(some) for some in torch.split(ids, 8)]
    spans = []
    for index in model.kept:
        with model.block(index) as block:
            begun = _mark(model.device)
            states = [model.run(block, index, hidden) for hidden in states]
            spans.append((begun, _mark(model.device)))
    now()
    return float(sum(begun.elapsed_time(ended) for begun, ended in spans)) / 1e3


class _HostMark:
    """A moment on the clock of a CPU, with the method of CUDA's events."""

    def __init__(self) -> None:
        self.at = now()

    def elapsed_time(self, other: "_HostMark") -> float:
        return 1e3 * (other.at - self.at)


def _mark(device: torch.device) -> Any:
    """Return the moment in which the device has done all that it was given so far."""
    if device.type != "cuda":
        return _HostMark()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _compression(setting: Setting, directory: Any, ids: Tensor) -> Figures:
    """Time the compression by low rank, block by block."""
    timed = Timed()
    model = StreamedModel.open(directory, device=setting.device, dtype=setting.dtype)
    with peak_of(setting.device, timed.seconds, "compression_peak_bytes"):
        compressed_by(model, "low_rank", setting.sizes.ratio, ids, timed=timed)
    per_block = float(timed.seconds["compress_seconds"]) / model.inventory.blocks
    return {**timed.seconds, "calibration_tokens_per_second_and_block": ids.numel() / per_block}


def _block_and_moments(inventory: Inventory, dtype: torch.dtype) -> int:
    """Return the bytes of a block and of both moments of the inputs of its sites, those of one input counted once."""
    sites = inventory.sites_of(0)
    widths = {(site.name.rpartition(".")[0], site.in_features) for site in sites}
    return _parameters(inventory) * dtype.itemsize + sum(2 * 4 * width**2 for _, width in widths)


def _parameters(inventory: Inventory) -> int:
    """Return the weights of the matrices of one block."""
    return sum(site.out_features * site.in_features for site in inventory.sites_of(0))


def distillation(setting: Setting) -> Figures:
    """Measure the distillation of SmolLM2-135M against a bare loop, in turns, and as a share of the product's rate."""
    batch, length = setting.sizes.batch
    directory, found = setting.small, Figures()
    compute = setting.dtype if setting.device.type == "cuda" else None
    teacher = StreamedModel.open(directory, device=setting.device, dtype=setting.dtype).whole()
    removed = max(1, len(StreamedModel.open(directory).kept) // 4)
    ours, theirs = (student_without(directory, removed, setting.device) for _ in range(2))
    windows = setting.windows(8 * batch, length, teacher.config.vocab_size)
    turns = 4
    tokens = setting.sizes.steps * batch * length
    settings = DistillationSettings(tokens=turns * tokens, batch_size=batch, interval=setting.sizes.steps)
    race = Turns(bare_loop(teacher, theirs, windows, settings, compute))
    with peak_of(setting.device, found, "peak_bytes"):
        distil(teacher, ours, windows, settings, compute_dtype=compute, observer=race)
    counted = race.turns[1:]
    our, bare = (sum(turn[which] for turn in counted) for which in (0, 1))
    sizes = [sum(each.numel() for each in model.parameters()) for model in (teacher, ours)]
    rate = len(counted) * tokens / our
    operations = 2 * sizes[0] + 6 * sizes[1]
    ceiling = product_tflops(setting, setting.dtype, setting.sizes.matrix)
    return found | {
        "tokens_per_second": rate,
        "bare_tokens_per_second": len(counted) * tokens / bare,
        "over_the_bare_loop": bare / our,
        "tflops": rate * operations / TERA,
        "share_of_the_product": rate * operations / TERA / ceiling,
    }


@torch.no_grad()
def decoding(setting: Setting) -> Figures:
    """Measure prefill and decoding of compressed models of SmolLM2-135M against the original."""
    found: Figures = {}
    model = StreamedModel.open(setting.small, device=setting.device, dtype=setting.dtype)
    ids = setting.windows(*setting.sizes.calibration, model.inventory.vocab_size)
    made: dict[str, Compressed] = {
        method: compressed_by(model, method, setting.sizes.ratio, ids[:8]) for method in ("low_rank", "width")
    }
    wholes = {"dense": model.whole()} | {
        name: each.edited(setting.device, setting.dtype).whole() for name, each in made.items()
    }
    for rows, prompt, new in setting.sizes.decoded:
        paces = {name: _pace(whole, rows, prompt, new) for name, whole in wholes.items()}
        for name, (prefill, decode) in paces.items():
            found[f"{name}_{rows}_prefill_tokens_per_second"] = prefill
            found[f"{name}_{rows}_decode_tokens_per_second"] = decode
            found[f"{name}_{rows}_prefill_over_dense"] = prefill / paces["dense"][0]
            found[f"{name}_{rows}_decode_over_dense"] = decode / paces["dense"][1]
    return found


def _pace(model: Any, rows: int, prompt: int, new: int) -> tuple[float, float]:
    """Return the tokens per second of prefill and of decoding, of `rows` sequences together."""
    ids = torch.randint(model.config.vocab_size, (rows, prompt), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    runs = []
    for _ in range(3):
        started = now()
        outputs = model(ids, use_cache=True, logits_to_keep=1)
        read = now()
        for _ in range(new):
            following = outputs.logits[:, -1:].argmax(-1)
            outputs = model(following, past_key_values=outputs.past_key_values, use_cache=True)
        runs.append((read - started, now() - read))
    prefill, decode = (statistics.median(each[which] for each in runs[1:]) for which in (0, 1))
    return rows * prompt / prefill, rows * new / decode
