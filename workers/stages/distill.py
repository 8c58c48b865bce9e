"""Train the compressed model to predict what the original predicts. What was trained becomes one more part.

The training is kept every so many steps: a new attempt goes on behind the last step that was kept, and ends with the
weights that an undisturbed one ends with.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from app.contract.job import Stage
from app.contract.recipe import Distillation
from workers.compression.distillation.settings import Settings
from workers.compression.distillation.trained import trained_part
from workers.compression.distillation.training import Checkpoint, distil
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.stages import calibrate, compress, compute, inspect
from workers.stages.context import Context
from workers.stages.part_files import write_part
from workers.stages.training_files import read_checkpoint, write_checkpoint

TRAINING = "training"
"""Under this name the training is kept, beside the results of the stages; the last state of it is no part of them."""

TEACHER = "teacher"
"""A directory of this name and that of the inputs lies beside those of the attempts: it keeps what the teacher said."""

CURVE = "curve.json"
CURVE_POINTS = 500
KEPT_TIMES, LONGEST_INTERVAL = 10, 50
"""A training is kept so many times, and after so many steps at the latest."""


@dataclass(frozen=True)
class Point:
    """The mean loss of the steps since the point before."""

    step: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """How a training went. It diverged `restarts` times, and went on at half the learning rate each time."""

    tokens: int
    restarts: int
    points: tuple[Point, ...]


def run(context: Context, directory: Path) -> None:
    distillation, place = asked(context), compute.device(context)
    original = StreamedModel.open(inspect.model_dir(context), device=place, dtype=torch.float32)
    parts = compress.FinishedParts(context)
    edited = EditedModel(original, parts)
    student = edited.whole()
    trained = train(context, student, distillation)
    part = trained_part(edited, student, len(parts), distillation.train)
    write_part(directory / compress.file_name(part.index), part)
    (directory / CURVE).write_text(json.dumps(asdict(as_curve(trained)), indent=1))


def train(context: Context, student: PreTrainedModel, distillation: Distillation) -> Checkpoint:
    """Trains the student in place, from where an earlier attempt was, and gives the last state of the training."""
    teacher = compute.open_model(context, inspect.model_dir(context)).whole()
    settings, step_tokens = settings_of(distillation), distillation.sequences * distillation.length
    steps = settings.steps(distillation.length)
    kept = last_kept(context)
    if kept is not None:
        context.resumed()

    def tell(step: int, loss: float) -> None:
        tokens = min(step * step_tokens, distillation.tokens)
        context.progress(step / steps, place_of(tokens, distillation.tokens, loss, kept.restarts if kept else 0))

    for checkpoint in distil(
        teacher,
        student,
        calibrate.distillation(context),
        settings,
        seed=context.assignment.recipe.seed,
        resumed=kept,
        compute_dtype=None if teacher.dtype == torch.float32 else teacher.dtype,
        cache=context.assignment.work_dir / f"{TEACHER}-{context.bench.fingerprint}",
        keep=lambda checkpoint: keep(context, checkpoint),
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


def settings_of(distillation: Distillation) -> Settings:
    settings = Settings(
        tokens=distillation.tokens,
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


def place_of(tokens: int, of: int, loss: float, restarts: int) -> str:
    """How far a training is, for people."""
    times = "once" if restarts == 1 else f"{restarts} times"
    diverged = f"; diverged {times} and went on at a lower learning rate" if restarts else ""
    return f"distilling: {tokens:,} of {of:,} tokens, loss {loss:.3g}{diverged}"


def keep(context: Context, checkpoint: Checkpoint) -> Checkpoint:
    """Make a training durable, drop the earlier states of it, and give it back as it is read from its file."""
    name = f"{checkpoint.step:08d}.safetensors"
    path = context.bench.begin(TRAINING) / name
    write_checkpoint(path, checkpoint)
    context.bench.finish_part(path)
    for earlier in context.bench.parts(TRAINING):
        if earlier < name:
            context.bench.discard_part(TRAINING, earlier)
    return read_checkpoint(path)


def last_kept(context: Context) -> Checkpoint | None:
    for name in reversed(context.bench.parts(TRAINING)):
        path = context.bench.finished_part(TRAINING, name)
        if path is not None:
            return read_checkpoint(path)
    return None


def as_curve(checkpoint: Checkpoint) -> Curve:
    """At most CURVE_POINTS points, evenly spread, the last of which is the end."""
    losses, count = checkpoint.losses, min(len(checkpoint.losses), CURVE_POINTS)
    ends = [len(losses) * (number + 1) // count for number in range(count)]
    tokens = checkpoint.tokens // max(1, checkpoint.step)
    points = tuple(
        Point(end, end * tokens, fmean(losses[start:end])) for start, end in zip([0, *ends], ends, strict=False)
    )
    return Curve(checkpoint.tokens, checkpoint.restarts, points)


def curve(context: Context) -> Curve | None:
    """None where the recipe asks for no distillation."""
    directory = context.results.get(Stage.DISTILL)
    if directory is None:
        return None
    found: dict[str, Any] = json.loads((directory / CURVE).read_text())
    return Curve(found["tokens"], found["restarts"], tuple(Point(**point) for point in found["points"]))
