"""Whether a GPU computes what the CPU computes, and whether what the service promises holds on it.

Each function is a step: it takes the setting, and adds figures. It raises where a promise is broken.
"""

import gc
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.gpu.results import Figures
from bench.gpu.setting import Setting
from bench.gpu.work import Compressed, allocated, compressed_by, logits_of, relative
from bench.race import now, student_without
from workers.compression.models.streamed import StreamedModel
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.settings import DistillationSettings

COMPARED: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("low_rank", 1.3, {}),
    ("svd", 1.2, {}),
    ("kronecker", 1.2, {}),
    ("width", 1.2, {}),
    ("width_low_rank", 1.3, {}),
    ("fusion", 1.2, {}),
)
"""Methods, ratios and options that are compared on both devices."""

REHEARSED = ("low_rank", "width")

TOLERANCE = 0.05
"""The largest relative difference of the logits of two models that are the same method's, one of each device. A wrong
matrix changes logits by their own size."""

ALIKE = 0.02
"""The largest difference of a matrix's relative errors on the two devices where their logits differ by more: a search
among near ties ends at another matrix, which is as good."""

LEFT_BEHIND = 2**20
"""Bytes that a job may leave on a card."""


class Broken(AssertionError):
    """A promise does not hold on this device."""


def require(holds: bool, promise: str) -> None:
    """Raise Broken unless a promise holds."""
    if not holds:
        raise Broken(promise)


def _ids(setting: Setting, vocabulary: int) -> torch.Tensor:
    count, length = setting.sizes.calibration
    return setting.windows(count // 2, length, vocabulary)


def factors(setting: Setting, found: Figures) -> None:
    """Compare every method's result on the device with that on the CPU, in float32."""
    directory, vocabulary = setting.random_model(setting.sizes.compared), setting.sizes.compared.vocabulary
    ids, cpu = _ids(setting, vocabulary), torch.device("cpu")
    small = setting.sizes.compared.hidden < 64
    for method, ratio, options in COMPARED:
        if small and method not in REHEARSED:
            continue
        results: list[Compressed] = []
        for device in (cpu, setting.device):
            started = now()
            model = StreamedModel.open(directory, device=device)
            results.append(compressed_by(model, method, 1.5 if small else ratio, ids, options=options))
            found[f"{method}_{len(results)}_seconds"] = now() - started
        one, other = (logits_of(each.edited(cpu, torch.float32), ids[:4]) for each in results)
        found[f"{method}_logits_error"] = relative(other, one)
        found[f"{method}_same_plan"] = results[0].plan == results[1].plan
        found[f"{method}_largest_difference_of_errors"] = _largest_error(results)
    wrong = [
        method
        for method, _, _ in COMPARED
        if float(found.get(f"{method}_logits_error", 0)) > TOLERANCE
        and float(found[f"{method}_largest_difference_of_errors"]) > ALIKE
    ]
    require(not wrong, f"the device makes other models than the CPU: {wrong}")


def _largest_error(results: Sequence[Compressed]) -> float:
    """Return the largest difference of the relative errors of a matrix, over all that both results have."""
    ours, theirs = ({name: each for part in one.parts for name, each in part.errors.items()} for one in results)
    return max((abs(ours[name] - theirs[name]) for name in ours.keys() & theirs.keys()), default=0.0)


def packages(setting: Setting, found: Figures) -> None:
    """Write packages from parts of the device, open them there with transformers, and compare their logits."""
    shape = setting.sizes.compared
    directory, ids = setting.random_model(shape), _ids(setting, shape.vocabulary)
    made = compressed_by(StreamedModel.open(directory, device=setting.device), "low_rank", 1.5, ids)
    expected = logits_of(made.edited(torch.device("cpu"), torch.float32), ids[:4])
    for form in ("safetensors", "dense"):
        package = made.write(setting.scratch / f"package-{form}", form)
        for dtype, most in ((torch.float32, 0.03), (torch.bfloat16, 0.1)):
            model = AutoModelForCausalLM.from_pretrained(package, dtype=dtype, trust_remote_code=form == "safetensors")
            model = torch.nn.Module.to(model, setting.device)
            with torch.no_grad():
                logits = model(ids[:4].to(setting.device)).logits
            error = relative(logits, expected)
            found[f"{form}_{str(dtype).removeprefix('torch.')}_error"] = error
            require(error < most, f"the package {form} computes something else in {dtype}: {error:.3g}")


class Kept(Observer):
    """Keeps all checkpoints, and begins at one of them."""

    def __init__(self, begin: TrainingCheckpoint | None = None) -> None:
        self.begin = begin
        self.saved: list[TrainingCheckpoint] = []

    def latest(self) -> TrainingCheckpoint | None:
        return self.begin

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        self.saved.append(checkpoint)
        return checkpoint


@contextmanager
def _deterministic() -> Any:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def resume(setting: Setting, found: Figures) -> None:
    """Interrupt a compression and a training, go on, and compare with those that nothing interrupted."""
    shape = setting.sizes.compared
    directory, ids = setting.random_model(shape), _ids(setting, shape.vocabulary)
    whole = compressed_by(StreamedModel.open(directory, device=setting.device), "low_rank", 1.5, ids)
    begun = whole.parts[:2]
    again = compressed_by(StreamedModel.open(directory, device=setting.device), "low_rank", 1.5, ids, parts=begun)
    pairs = [
        (part.tensors[name], other.tensors[name])
        for part, other in zip(whole.parts, again.parts, strict=True)
        for name in part.tensors
    ]
    found["parts_same_bytes"] = all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs)
    found["parts_largest_error"] = max(relative(other, one) for one, other in pairs if one.is_floating_point())
    batch, length = setting.sizes.batch
    settings = DistillationSettings(tokens=6 * batch * length, batch_size=batch, interval=3)
    windows = setting.windows(3 * batch, length, shape.vocabulary)
    compute = setting.dtype if setting.device.type == "cuda" else None

    def trained(observer: Kept) -> dict[str, torch.Tensor]:
        teacher = StreamedModel.open(directory, device=setting.device, dtype=setting.dtype).whole()
        student = student_without(directory, 1, setting.device)
        return distil(teacher, student, windows, settings, compute_dtype=compute, observer=observer).trained

    with _deterministic():
        first = Kept()
        expected = trained(first)
        resumed = trained(Kept(first.saved[0]))
    found["training_same_bytes"] = all(torch.equal(expected[name], resumed[name]) for name in expected)
    found["training_largest_error"] = max(relative(resumed[name], expected[name]) for name in expected)
    require(float(found["parts_largest_error"]) < TOLERANCE, "a resumed compression makes other parts")
    require(float(found["training_largest_error"]) < TOLERANCE, "a resumed training ends elsewhere")


def out_of_memory(setting: Setting, found: Figures) -> None:
    """Train where a batch does not fit, and see the training go on with fewer sequences at a time."""
    directory = setting.random_model(setting.sizes.compared)
    teacher = StreamedModel.open(directory, device=setting.device, dtype=setting.dtype).whole()
    student = student_without(directory, 1, setting.device)
    batch, length = setting.sizes.batch
    windows = setting.windows(batch, length, setting.sizes.compared.vocabulary)
    settings = DistillationSettings(tokens=2 * batch * length, batch_size=batch, micro_batch_size=batch, interval=100)
    if setting.device.type != "cuda":
        distil(teacher, student, windows, settings)
        found["tried"] = "a CPU has no limit of its own"
        return
    fits = torch.cuda.memory_allocated(setting.device) + _activations(setting, teacher, student, windows, settings)
    found.add({"bytes_that_it_needs": fits, "bytes_that_it_had": int(0.6 * fits)})
    total = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * fits / total, setting.device)
    try:
        last = distil(teacher, student, windows, settings, compute_dtype=setting.dtype)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)
    found["steps"] = last.step
    require(last.step == last.steps, "the training did not end")


def _activations(setting: Setting, teacher: Any, student: Any, windows: torch.Tensor, settings: Any) -> int:
    """Return the bytes beyond the models that a step with the whole batch at a time needs."""
    before = torch.cuda.memory_allocated(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    distil(teacher, student, windows, settings, compute_dtype=setting.dtype)
    return torch.cuda.max_memory_allocated(setting.device) - before


def two_jobs(setting: Setting, found: Figures) -> None:
    """Run two jobs one after the other, and see how much each leaves on the device."""
    shape = setting.sizes.compared
    directory, ids = setting.random_model(shape), _ids(setting, shape.vocabulary)
    left: list[int] = []
    for number in (1, 2):
        before = allocated(setting.device)
        made = compressed_by(StreamedModel.open(directory, device=setting.device), "low_rank", 1.5, ids)
        logits_of(made.edited(setting.device, setting.dtype), ids[:4])
        del made
        gc.collect()
        left.append(allocated(setting.device) - before)
        found[f"left_by_job_{number}"] = left[-1]
    # The first one may leave what torch keeps for all that follow, such as cuBLAS's workspace.
    require(left[1] < LEFT_BEHIND, f"jobs leave {left} bytes on the device")
