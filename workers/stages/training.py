"""Train the compressed model, and store the trained weights as one more part.

Checkpoints are durable: a new attempt resumes from the last one, and ends with the weights of an undisturbed attempt.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modelpress.contract.distillation import Distillation
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
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
from workers.stages.plan import plan_of
from workers.stages.training_files import CheckpointFiles

TRAINING = "training"
"""Name of the result whose directory holds the checkpoints, beside the results of the stages."""

TEACHER = "teacher"
"""Beginning of the name of the directory of cached teacher logits, which all attempts with the same inputs share."""

COMPRESSING = 0.1
"""Estimated fraction of a phase's time spent on compressing its parts; only the progress bar depends on it."""

ROUNDED_SHARE = 0.25
"""Fraction of the tokens that trains the rounded model behind the training of its structure."""

METRICS = 500
"""Points of the loss curve that are reported while a phase is trained, about."""

CHECKPOINTS, LONGEST_INTERVAL = 10, 50
"""Checkpoints per run, and the most steps between two of them."""


@dataclass(frozen=True)
class Run:
    """One of a job's trainings.

    Attributes:
        name: beginning of the names of its checkpoint files.
        windows: token ids [N, T] to train on.
        tokens: the training budget.
        number: how many trainings of the same stage came before; the steps in the loss metric count on from theirs.
        prefix: beginning of its progress messages.
        progress: returns the finished fraction of the stage for that of the training.
    """

    name: str
    windows: Tensor
    tokens: int
    number: int = 0
    prefix: str = ""
    progress: Callable[[float], float] = float


def train_phase(context: Context, phase: Phase, parallel: ParallelStrategy | None = None) -> None:
    """Train the model that all parts so far make; store the loss curve and the part number `phase.trained`.

    With `parallel`, each of several processes calls this, and the leading one stores the result.
    """
    parallel = parallel or SingleProcess()
    edited = EditedModel(opened(context), compress.parts_before(context, phase.trained))
    run = run_of(context, phase)
    checkpoint = train(context, edited.whole(), run, parallel)
    if not parallel.leads:
        return
    trained = Trained(trained_part(edited, checkpoint.trained), phase.trained, checkpoint, run)
    store(context, names.DISTILL, trained, curves=len(compress.schedule(context)))


@dataclass(frozen=True)
class Trained:
    """Result of a training: a part, its number among all parts of the job, and the last checkpoint."""

    part: CompressedPart
    number: int
    checkpoint: TrainingCheckpoint
    run: Run


def store(context: Context, result: str, trained: Trained, curves: int = 1) -> None:
    """Make the loss curve and the part of a training durable in a result, and drop its checkpoints.

    `curves` is the number of curves that share the points of the job's curve.
    """
    directory = context.bench.begin(result)
    # The part comes last, since it marks the training as done.
    curve = directory / curve_name(trained.run.number)
    write_curve(curve, curve_of(trained.checkpoint, max(1, POINTS // curves)))
    context.bench.finish_part(curve)
    path = directory / file_name(trained.number)
    write_part(path, trained.part)
    context.bench.finish_part(path)
    checkpoint_files(context, trained.run).clear()


def opened(context: Context) -> StreamedModel:
    """Return the original in the precision in which students are trained."""
    return StreamedModel.open(inspect.model_dir(context), device=compute.device(context), dtype=torch.float32)


def run_of(context: Context, phase: Phase) -> Run:
    """Return the training of a phase, which has an equal share of the tokens and the text."""
    phases = len(compress.schedule(context))
    return Run(
        f"phase-{phase.number:04d}",
        windows_of(calibrate.distillation(context), phase, phases),
        tokens_of(context).structure // phases,
        phase.number,
        phase_prefix(phase, phases),
        lambda trained: progress_of(phase, phases, trained=trained),
    )


@dataclass(frozen=True)
class Tokens:
    """Tokens of a distillation: those for the model before it is rounded, and those for the rounded one."""

    structure: int
    rounded: int


def tokens_of(context: Context) -> Tokens:
    """Return how the recipe's tokens are divided. A model that loses no structure is trained once it is rounded."""
    plan, tokens = plan_of(context), requested(context).tokens
    if not plan.rounds:
        return Tokens(tokens, 0)
    if not plan.steps:
        return Tokens(0, tokens)
    rounded = int(tokens * ROUNDED_SHARE)
    return Tokens(tokens - rounded, rounded)


def train(context: Context, student: PreTrainedModel, run: Run, parallel: ParallelStrategy) -> TrainingCheckpoint:
    """Train the student in place, resuming from an earlier attempt, and return the checkpoint after the last step."""
    settings = replace(settings_of(requested(context), run.tokens), seed=context.assignment.recipe.seed)
    teacher = compute.open_model(context, inspect.model_dir(context)).whole()
    return distil(
        teacher,
        student,
        run.windows,
        settings,
        compute_dtype=None if teacher.dtype == torch.float32 else teacher.dtype,
        teacher_cache=context.assignment.work_dir / f"{TEACHER}-{context.bench.fingerprint}",
        parallel=parallel,
        observer=RunObserver(context, run, settings, parallel),
    )


class RunObserver(Observer):
    """Makes the checkpoints of a training durable, and reports its progress to the job."""

    def __init__(self, context: Context, run: Run, settings: DistillationSettings, parallel: ParallelStrategy) -> None:
        self._context, self._run, self._settings, self._parallel = context, run, settings, parallel
        self._files = checkpoint_files(context, run)
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
        settings, run = self._settings, self._run
        tokens = min(step * settings.batch_size * self._length, settings.tokens)
        steps = settings.steps(self._length)
        detail = training_detail(tokens, settings.tokens, loss, restarts)
        self._context.progress(run.progress(step / steps), f"{run.prefix}{detail}")
        if step % max(1, steps // METRICS) == 0 or step == steps:
            self._context.metric(run.number * steps + step, "loss", loss)


def checkpoint_files(context: Context, run: Run) -> CheckpointFiles:
    """Return the store of the checkpoints of a training."""
    return CheckpointFiles(context.bench, TRAINING, run.name)


def requested(context: Context) -> Distillation:
    """Return the distillation that the recipe asks for.

    Raises:
        ValueError: it asks for none.
    """
    distillation = context.assignment.recipe.distillation
    if distillation is None:
        raise ValueError("the recipe asks for no distillation")
    return distillation


def settings_of(distillation: Distillation, tokens: int) -> DistillationSettings:
    """Return the settings of one training on `tokens` tokens.

    Every other field that recipe and settings have in common is copied by its name.
    """
    shared = {field.name for field in fields(DistillationSettings)} & type(distillation).model_fields.keys()
    settings = DistillationSettings(**distillation.model_dump(include=shared))
    settings = replace(settings, tokens=tokens)
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


def curve_name(number: int) -> str:
    """Return the name of the file with the loss curve of a stage's training."""
    return f"curve-{number}.json"
