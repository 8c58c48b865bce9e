"""One training of the compressed model as far as it is made, with what it left as one more part.

The training is kept every so many steps: a new attempt goes on behind the last step that was kept, and ends with the
weights that an undisturbed one ends with.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.contract.recipe import Distillation
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.phases import Phase
from workers.compression.training.parallel import Alone, Ranks
from workers.compression.training.settings import Settings
from workers.compression.training.trained import trained_part
from workers.compression.training.training import Checkpoint, distil
from workers.stages import calibrate, compress, compute, inspect, names
from workers.stages.context import Context
from workers.stages.curve import POINTS, curve_of, write_curve
from workers.stages.part_files import file_name, write_part
from workers.stages.training_files import read_checkpoint, write_checkpoint

TRAINING = "training"
"""Under this name trainings are kept, beside the results of the stages; the last state of one is no part of them."""

TEACHER = "teacher"
"""A directory of this name and that of the inputs lies beside those of the attempts: it keeps what the teacher said."""

COMPRESSING = 0.1
"""Part of a phase that making its parts takes, before its training; only the progress bar leans on it."""

KEPT_TIMES, LONGEST_INTERVAL = 10, 50
"""A training is kept so many times, and after so many steps at the latest."""


def train_phase(context: Context, phase: Phase, ranks: Ranks | None = None) -> None:
    """Trains what the parts so far make of the original; leaves the curve and the part `phase.trained`.

    Where the training is divided among `ranks`, all of them call this, and the one that leads makes it durable.
    """
    ranks = ranks or Alone()
    distillation = asked(context)
    original = StreamedModel.open(inspect.model_dir(context), device=compute.device(context), dtype=torch.float32)
    edited = EditedModel(original, compress.parts_before(context, phase.trained))
    student = edited.whole()
    trained = train(context, student, distillation, phase, ranks)
    if not ranks.leads:
        return
    part = trained_part(edited, trained.trained)
    directory = context.bench.begin(names.DISTILL)
    # The part comes last, since it says that the phase is done.
    curve = directory / curve_name(phase)
    write_curve(curve, curve_of(trained, max(1, POINTS // len(compress.schedule(context)))))
    context.bench.finish_part(curve)
    path = directory / file_name(phase.trained)
    write_part(path, part)
    context.bench.finish_part(path)


def train(
    context: Context, student: PreTrainedModel, distillation: Distillation, phase: Phase, ranks: Ranks
) -> Checkpoint:
    """Trains the student in place, from where an earlier attempt was, and gives the last state of the training."""
    count = len(compress.schedule(context))
    teacher = compute.open_model(context, inspect.model_dir(context)).whole()
    settings, step_tokens = settings_of(distillation, count), distillation.sequences * distillation.length
    steps = settings.steps(distillation.length)
    before = phase.number * steps
    kept = last_kept(context, before)
    if kept is not None:
        context.resumed()

    def tell(step: int, loss: float) -> None:
        tokens = min(step * step_tokens, settings.tokens)
        place = place_of(tokens, settings.tokens, loss, kept.restarts if kept else 0)
        context.progress(progress_of(phase, count, trained=step / steps), in_phase(phase, count) + place)

    for checkpoint in distil(
        teacher,
        student,
        windows_of(calibrate.distillation(context), phase, count),
        settings,
        seed=context.assignment.recipe.seed,
        resumed=kept,
        compute_dtype=None if teacher.dtype == torch.float32 else teacher.dtype,
        cache=context.assignment.work_dir / f"{TEACHER}-{context.bench.fingerprint}",
        ranks=ranks,
        keep=lambda checkpoint: keep(context, checkpoint, before, ranks),
        told=tell,
    ):
        kept = checkpoint
    if kept is None:
        raise ValueError("a training of no steps")
    return kept


def asked(context: Context) -> Distillation:
    distillation = context.assignment.recipe.distillation
    if distillation is None:
        raise ValueError("the recipe asks for no distillation")
    return distillation


def settings_of(distillation: Distillation, phases: int = 1) -> Settings:
    """Those of each training, where the tokens of the recipe are for so many."""
    settings = Settings(
        tokens=distillation.tokens // phases,
        sequences=distillation.sequences,
        micro_batch=distillation.micro_batch,
        rate=distillation.learning_rate,
        warm_up=distillation.warm_up,
        temperature=distillation.temperature,
        cross_entropy=distillation.cross_entropy,
        hidden=distillation.hidden,
        train=distillation.train,
        checkpointing=distillation.checkpointing,
        cached_logits=distillation.cached_logits,
    )
    often = settings.steps(distillation.length) // KEPT_TIMES
    return replace(settings, interval=min(max(1, often), LONGEST_INTERVAL))


def windows_of(windows: Tensor, phase: Phase, phases: int) -> Tensor:
    """The phase's share of windows [N, T], so that no text comes again while other text was not seen yet."""
    return windows[phase.number % len(windows) :: phases]


def progress_of(phase: Phase, phases: int, *, compressed: float = 1.0, trained: float = 0.0) -> float:
    """How much of all phases is done; the parts of the first are those of another stage."""
    compressing = COMPRESSING if phase.number else 0.0
    return (phase.number + compressing * compressed + (1 - compressing) * trained) / phases


def in_phase(phase: Phase, phases: int) -> str:
    """What stands before the rest where there are several, for people."""
    return f"step {phase.number + 1} of {phases}, " if phases > 1 else ""


def place_of(tokens: int, of: int, loss: float, restarts: int) -> str:
    """How far a training is, for people."""
    times = "once" if restarts == 1 else f"{restarts} times"
    diverged = f"; diverged {times} and went on at a lower learning rate" if restarts else ""
    return f"distilling: {tokens:,} of {of:,} tokens, loss {loss:.3g}{diverged}"


def keep(context: Context, checkpoint: Checkpoint, before: int, ranks: Ranks) -> Checkpoint:
    """Make a training durable, drop the earlier states of it, and give it back as it is read from its file.

    `before`: the steps of trainings before this one; a state is named for the number of all steps so far.
    """
    path = context.bench.begin(TRAINING) / f"{before + checkpoint.step:08d}.safetensors"
    if ranks.leads:
        write_checkpoint(path, checkpoint)
        context.bench.finish_part(path)
        for earlier in context.bench.parts(TRAINING):
            if earlier < path.name:
                context.bench.discard_part(TRAINING, earlier)
    ranks.wait()
    return read_checkpoint(path)


def last_kept(context: Context, before: int) -> Checkpoint | None:
    """The last state of the training that has so many steps of others before it."""
    for name in reversed(context.bench.parts(TRAINING)):
        path = context.bench.finished_part(TRAINING, name)
        if path is not None and int(path.stem) > before:
            return read_checkpoint(path)
    return None


def curve_name(phase: Phase) -> str:
    return f"curve-{phase.number}.json"
