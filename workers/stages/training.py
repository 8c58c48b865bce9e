"""Train the compressed model once, and store the trained weights as one more part.

Checkpoints are durable: a new attempt resumes from the last one, and ends with the weights of an undisturbed attempt.
"""

from dataclasses import fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modelpress.contract.recipe import Distillation
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.phases import Phase
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.parallel import ParallelStrategy, SingleProcess
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.trained import trained_part
from workers.stages import calibrate, compress, compute, inspect, names
from workers.stages.context import Context
from workers.stages.curve import POINTS, curve_of, write_curve
from workers.stages.part_files import file_name, write_part
from workers.stages.training_files import CheckpointFiles

TRAINING = "training"
"""Name of the result whose directory holds the checkpoints, beside the results of the stages."""

TEACHER = "teacher"
"""Beginning of the name of the directory of cached teacher logits, which all attempts with the same inputs share."""

COMPRESSING = 0.1
"""Estimated fraction of a phase's time spent on compressing its parts; only the progress bar depends on it."""

METRICS = 500
"""Points of the loss curve that are reported while a phase is trained, about."""

CHECKPOINTS, LONGEST_INTERVAL = 10, 50
"""Checkpoints per run, and the most steps between two of them."""


def train_phase(context: Context, phase: Phase, parallel: ParallelStrategy | None = None) -> None:
    """Train the model that all parts so far make; store the loss curve and the part number `phase.trained`.

    With `parallel`, each of several processes calls this, and the leading one stores the result.
    """
    parallel = parallel or SingleProcess()
    original = StreamedModel.open(inspect.model_dir(context), device=compute.device(context), dtype=torch.float32)
    edited = EditedModel(original, compress.parts_before(context, phase.trained))
    checkpoint = train(context, edited.whole(), phase, parallel)
    if not parallel.leads:
        return
    part = trained_part(edited, checkpoint.trained)
    directory = context.bench.begin(names.DISTILL)
    # The part comes last, since it marks the phase as done.
    curve = directory / curve_name(phase)
    write_curve(curve, curve_of(checkpoint, max(1, POINTS // len(compress.schedule(context)))))
    context.bench.finish_part(curve)
    path = directory / file_name(phase.trained)
    write_part(path, part)
    context.bench.finish_part(path)
    checkpoint_files(context, phase).clear()


def train(context: Context, student: PreTrainedModel, phase: Phase, parallel: ParallelStrategy) -> TrainingCheckpoint:
    """Train the student in place, resuming from an earlier attempt, and return the checkpoint after the last step."""
    distillation, phases = requested(context), len(compress.schedule(context))
    settings = replace(settings_of(distillation, phases), seed=context.assignment.recipe.seed)
    teacher = compute.open_model(context, inspect.model_dir(context)).whole()
    return distil(
        teacher,
        student,
        windows_of(calibrate.distillation(context), phase, phases),
        settings,
        compute_dtype=None if teacher.dtype == torch.float32 else teacher.dtype,
        teacher_cache=context.assignment.work_dir / f"{TEACHER}-{context.bench.fingerprint}",
        parallel=parallel,
        observer=PhaseObserver(context, phase, settings, parallel),
    )


class PhaseObserver(Observer):
    """Makes the checkpoints of one phase's training durable, and reports its progress to the job."""

    def __init__(
        self, context: Context, phase: Phase, settings: DistillationSettings, parallel: ParallelStrategy
    ) -> None:
        self._context, self._phase, self._settings, self._parallel = context, phase, settings, parallel
        self._files = checkpoint_files(context, phase)
        self._phases = len(compress.schedule(context))
        self._length = requested(context).length

    def latest(self) -> TrainingCheckpoint | None:
        """Return the newest checkpoint of any attempt and report the resumption; None if there is none."""
        checkpoint = self._files.latest()
        if checkpoint is not None:
            self._context.resumed()
        return checkpoint

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        """Store a checkpoint in the leading process, and return it as every process reads it back."""
        if self._parallel.leads:
            self._files.save(checkpoint)
        self._parallel.wait()
        # Every process reads the leader's file if it has to go back to this checkpoint.
        return self._files.read(checkpoint.step)

    def on_step(self, step: int, loss: float, restarts: int) -> None:
        """Report the progress after a step."""
        settings = self._settings
        tokens = min(step * settings.batch_size * self._length, settings.tokens)
        fraction = progress_of(self._phase, self._phases, trained=step / settings.steps(self._length))
        detail = training_detail(tokens, settings.tokens, loss, restarts)
        self._context.progress(fraction, f"{phase_prefix(self._phase, self._phases)}{detail}")
        steps = settings.steps(self._length)
        if step % max(1, steps // METRICS) == 0 or step == steps:
            self._context.metric(self._phase.number * steps + step, "loss", loss)


def checkpoint_files(context: Context, phase: Phase) -> CheckpointFiles:
    """Return the store of the checkpoints of a phase's training."""
    return CheckpointFiles(context.bench, TRAINING, f"phase-{phase.number:04d}")


def requested(context: Context) -> Distillation:
    """Return the distillation that the recipe asks for.

    Raises:
        ValueError: it asks for none.
    """
    distillation = context.assignment.recipe.distillation
    if distillation is None:
        raise ValueError("the recipe asks for no distillation")
    return distillation


def settings_of(distillation: Distillation, phases: int = 1) -> DistillationSettings:
    """Return the training settings of one phase; the recipe's token budget is divided evenly over `phases`.

    Every field that recipe and settings have in common is copied by its name.
    """
    shared = {field.name for field in fields(DistillationSettings)} & type(distillation).model_fields.keys()
    settings = DistillationSettings(**distillation.model_dump(include=shared))
    settings = replace(settings, tokens=distillation.tokens // phases)
    often = settings.steps(distillation.length) // CHECKPOINTS
    return replace(settings, interval=min(max(1, often), LONGEST_INTERVAL))


def windows_of(windows: Tensor, phase: Phase, phases: int) -> Tensor:
    """Return the phase's share of the windows [N, T]; the phases divide them evenly, so none repeats another's text.

    If there are fewer windows than phases, some phases share a window.
    """
    return windows[phase.number % len(windows) :: phases]


def progress_of(phase: Phase, phases: int, *, compressed: float = 1.0, trained: float = 0.0) -> float:
    """Return the finished fraction of all phases, given the fractions of this phase's compression and training.

    The stage `compress` makes the parts of the first phase, so they do not count.
    """
    compressing = COMPRESSING if phase.number else 0.0
    return (phase.number + compressing * compressed + (1 - compressing) * trained) / phases


def phase_prefix(phase: Phase, phases: int) -> str:
    """Return the beginning of a progress message that names the phase; empty where there is only one."""
    return f"phase {phase.number + 1} of {phases}, " if phases > 1 else ""


def training_detail(tokens: int, of: int, loss: float, restarts: int) -> str:
    """Return the progress message of a training: tokens done, tokens in all, last loss (nats per token), restarts."""
    times = "once" if restarts == 1 else f"{restarts} times"
    diverged = f"; diverged {times} and continued at a lower learning rate" if restarts else ""
    return f"distilling: {tokens:,} of {of:,} tokens, loss {loss:.3g}{diverged}"


def curve_name(phase: Phase) -> str:
    """Return the name of the file with a phase's loss curve."""
    return f"curve-{phase.number}.json"
