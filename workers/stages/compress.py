"""Compress the model part by part. Each finished part is durable, so a new attempt continues after the last one.

If the recipe asks for a distillation in several phases, this stage makes only the parts of the first phase.
"""

from pathlib import Path

from workers.compression.phases import Phase, phases
from workers.compression.pipeline import compress
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.stages import calibrate, compute, inspect, names
from workers.stages.context import Context
from workers.stages.part_files import PartFiles, StagePlace
from workers.stages.plan import plan_of, sensitivities_of
from workers.stages.stage import Stage
from workers.stages.training_files import AbsorptionCheckpoints

NAME = names.COMPRESS


def run(context: Context, directory: Path) -> None:
    """Compress every part of the first phase that no attempt has finished, and make each durable."""
    model, first = compute.open_model(context, inspect.model_dir(context)), schedule(context)[0]
    labels = first.plan.labels(model.inventory)
    parts = PartFiles(context.bench, [StagePlace(NAME, range(len(labels)))], directory)
    if parts:
        label = labels[min(len(parts), len(labels) - 1)]  # all parts may be finished already
        context.resumed(block=label.block)
        context.progress(len(parts) / len(labels), f"going on from {label.text}")

    def report(checkpoint: TrainingCheckpoint) -> None:
        place = f"{labels[len(parts)].text}, step {checkpoint.step} of {checkpoint.steps} of its distillation"
        context.progress(len(parts) / len(labels), place)

    checkpoints = AbsorptionCheckpoints(context.bench, NAME, report)
    for done in compress(
        model,
        first.plan,
        calibrate.calibration(context),
        parts,
        sensitivities=sensitivities_of(context),
        checkpoints=checkpoints,
        seed=context.assignment.recipe.seed,
    ):
        checkpoints.clear()
        context.progress(done / len(labels), labels[min(done, len(labels) - 1)].text)


def schedule(context: Context) -> tuple[Phase, ...]:
    """Return the recipe's phases; a recipe without distillation has one phase, which is never trained."""
    distillation = context.assignment.recipe.distillation
    count = 1 if distillation is None else distillation.phases
    return context.hold("phases", lambda: phases(inspect.model_inventory(context), plan_of(context), count))


def finished_parts(context: Context) -> PartFiles:
    """Return all parts that the finished stages have left, in the order in which they apply.

    The part that a training left follows the parts that it was trained from.
    """
    return parts_before(context, _end(context))


def parts_before(context: Context, end: int, directory: Path | None = None) -> PartFiles:
    """Return the first `end` parts of compression and distillation; new parts are written to `directory`."""
    compressed = schedule(context)[0].trained
    places = [StagePlace(NAME, range(min(end, compressed))), StagePlace(names.DISTILL, range(compressed, end))]
    return PartFiles(context.bench, places, directory)


def _end(context: Context) -> int:
    planned = schedule(context)
    return planned[-1].trained + 1 if names.DISTILL in context.results else planned[0].trained


STAGE = Stage(names.COMPRESS, run)
