"""How fast a GPU is at what the service does, against its own matrix product and against bare loops."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.gpu.results import Figures
from bench.gpu.setting import Setting
from bench.gpu.work import Compressed, Timed, compressed_by, peak_of
from bench.race import Turns, bare_loop, now, student_without
from modelpress.spec.steps import Quantise
from workers.compression.evaluation.fidelity import compare
from workers.compression.lane import lane_for
from workers.compression.math.sensitivity import measure_all
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.steps import RUNNERS
from workers.compression.steps.work import Work
from workers.compression.training.checkpoint import TrainingCheckpoint
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


def ceilings(setting: Setting, found: Figures) -> None:
    """Measure what the device can do: matrix products, copies, decompositions, one by one and batched."""
    rows = setting.sizes.matrix
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
            _decompositions(setting, size, dtype, found)


def _decompositions(setting: Setting, size: int, dtype: torch.dtype, found: Figures) -> None:
    """Measure the seconds of the decompositions of one positive matrix [size, size], and of five together."""
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
    for name, work in works.items():
        found[f"{name}_{size}_{dtype}_seconds"] = seconds_of(work, repeats=2)


def job(setting: Setting, found: Figures) -> None:
    """Time the stages of a job at 1.3 without training, on SmolLM2-135M."""
    timed, begun = Timed(found), now()
    model, ids = _opened(setting, timed)
    with peak_of(setting.device, found, "peak_bytes"):
        made = compressed_by(model, "low_rank", setting.sizes.ratio, ids, timed=timed)
    with timed("write"):
        made.write(setting.scratch / "job")
    _judge(setting, model, made.edited(setting.device, setting.dtype), timed, begun)


def job_in_four_bits(setting: Setting, found: Figures) -> None:
    """Time the stages of a job that rounds every matrix to 4.5 bits, about 3.6 times fewer bytes."""
    timed, begun = Timed(found), now()
    model, ids = _opened(setting, timed)
    inventory = model.inventory
    with timed("sensitivities"):
        measured = measure_all(model, ids)
    codes = {site.name: FOUR_BITS for site in (inventory.embedding, *inventory.sites) if site.in_features % 32 == 0}
    step, edited = Quantise(format="gguf", codes=codes), EditedModel(model)
    with peak_of(setting.device, found, "peak_bytes"), timed("round"):
        for part in RUNNERS[Quantise].run(step, Work(model, edited, ids, measured), ()):
            edited.apply(part)
    _judge(setting, model, edited, timed, begun)


def _opened(setting: Setting, timed: Timed) -> tuple[StreamedModel, Tensor]:
    """Return SmolLM2-135M, opened, and text for its calibration."""
    with timed("open"):
        model = StreamedModel.open(setting.small, device=setting.device, dtype=setting.dtype)
    return model, setting.windows(*setting.sizes.calibration, model.inventory.vocab_size)


def _judge(setting: Setting, model: StreamedModel, edited: EditedModel, timed: Timed, begun: float) -> None:
    """Compare a result with its original, and note the seconds since `begun`."""
    _, length = setting.sizes.calibration
    with timed("evaluate"):
        windows = setting.windows(setting.sizes.judged, length, model.inventory.vocab_size, first=200)
        _, found = compare(model, [edited], windows)
    timed.seconds.add({"seconds": now() - begun, "divergence": found.divergence, "agreement": found.agreement})


def distillation(setting: Setting, found: Figures) -> None:
    """Measure the distillation of SmolLM2-135M against a bare loop, in turns, and as a share of the product's rate."""
    batch, length = setting.sizes.batch
    directory = setting.small
    compute = setting.dtype if setting.device.type == "cuda" else None
    teacher = StreamedModel.open(directory, device=setting.device, dtype=setting.dtype).whole()
    removed = max(1, len(StreamedModel.open(directory).kept) // 4)
    ours, theirs = (student_without(directory, removed, setting.device) for _ in range(2))
    windows = setting.windows(8 * batch, length, teacher.config.vocab_size)
    turns = 4
    tokens = setting.sizes.steps * batch * length
    settings = DistillationSettings(tokens=turns * tokens, batch_size=batch, interval=setting.sizes.steps)
    race = _Noted(found, tokens, bare_loop(teacher, theirs, windows, settings, compute))
    with peak_of(setting.device, found, "peak_bytes"):
        distil(teacher, ours, windows, settings, compute_dtype=compute, observer=race)
    counted = race.turns[1:]
    our, bare = (sum(turn[which] for turn in counted) for which in (0, 1))
    sizes = [sum(each.numel() for each in model.parameters()) for model in (teacher, ours)]
    rate = len(counted) * tokens / our
    operations = 2 * sizes[0] + 6 * sizes[1]
    ceiling = product_tflops(setting, setting.dtype, setting.sizes.matrix)
    found.add(
        {
            "tokens_per_second": rate,
            "bare_tokens_per_second": len(counted) * tokens / bare,
            "over_the_bare_loop": bare / our,
            "tflops": rate * operations / TERA,
            "share_of_the_product": rate * operations / TERA / ceiling,
        }
    )


class _Noted(Turns):
    """Turns that are noted as they end, each as tokens per second of ours and of the bare loop."""

    def __init__(self, found: Figures, tokens: int, bare: Iterator[None]) -> None:
        super().__init__(bare)
        self._found, self._tokens = found, tokens

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        kept = super().save(checkpoint)
        ours, bare = (self._tokens / seconds for seconds in self.turns[-1])
        turn = f"turn_{len(self.turns)}"
        self._found.add({f"{turn}_tokens_per_second": ours, f"{turn}_bare_tokens_per_second": bare})
        return kept


@torch.no_grad()
def decoding(setting: Setting, found: Figures) -> None:
    """Measure prefill and decoding of compressed models of SmolLM2-135M against the original."""
    model = StreamedModel.open(setting.small, device=setting.device, dtype=setting.dtype)
    ids = setting.windows(*setting.sizes.calibration, model.inventory.vocab_size)
    made: dict[str, Compressed] = {
        method: compressed_by(model, method, setting.sizes.ratio, ids[:8]) for method in ("low_rank", "width")
    }
    wholes = {"dense": model.whole()} | {
        name: each.edited(setting.device, setting.dtype).whole() for name, each in made.items()
    }
    for rows, prompt, new in setting.sizes.decoded:
        dense = None
        for name, whole in wholes.items():
            prefill, decode = _pace(whole, rows, prompt, new)
            dense = dense or (prefill, decode)
            found.add(
                {
                    f"{name}_{rows}_prefill_tokens_per_second": prefill,
                    f"{name}_{rows}_decode_tokens_per_second": decode,
                    f"{name}_{rows}_prefill_over_dense": prefill / dense[0],
                    f"{name}_{rows}_decode_over_dense": decode / dense[1],
                }
            )


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
