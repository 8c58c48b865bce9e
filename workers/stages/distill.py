"""Train the compressed model to predict what the original predicts. The trained weights become one more part.

If the recipe asks for several phases, the stage `compress` has compressed the first group of matrices. This stage
trains the model, compresses the next group, trains again, and so on. Each part and each training is durable by itself.
With several GPUs, several processes train together.
"""

import logging
from pathlib import Path

from workers.compression.models.edited import EditedModel
from workers.compression.phases import Phase
from workers.compression.pipeline import compress as compression
from workers.stages import calibrate, compress, compute, inspect, names, training
from workers.stages.context import Context
from workers.stages.curve import Curve, read_curve
from workers.stages.part_files import PartFiles, StagePlace, file_name
from workers.stages.plan import sensitivities_of
from workers.stages.ranks import train_in_processes
from workers.stages.stage import Stage

log = logging.getLogger(__name__)

NAME = names.DISTILL


def run(context: Context, directory: Path) -> None:
    """Finish every phase: compress its parts, unless `compress` has done so, and train.

    A model that loses no structure is trained by the stage `tune`, once it is rounded.
    """
    if not training.tokens_of(context).structure:
        return
    for phase in compress.schedule(context):
        if is_trained(context, phase):
            continue
        if phase.number:
            compress_more(context, directory, phase)
        train(context, phase)


def processes(context: Context) -> int:
    """Return how many processes train together.

    Each process computes at least one sequence of a batch. In a sharded training all compute equally many, so the
    number must divide the batch size.
    """
    distillation = context.assignment.recipe.distillation
    if distillation is None:
        return 1
    several = min(compute.processes(context), distillation.batch_size)
    if distillation.sharded:
        even = max(number for number in range(1, several + 1) if distillation.batch_size % number == 0)
        if even < several:
            log.warning("%d of %d processes train: batch_size must be a multiple of their number", even, several)
        return even
    return several


def train(context: Context, phase: Phase) -> None:
    """Train one phase, in several processes if there are several GPUs."""
    several = processes(context)
    if several > 1:
        train_in_processes(context, phase, several)
    else:
        training.train_phase(context, phase)


def is_trained(context: Context, phase: Phase) -> bool:
    """Return whether the phase's training has left its part."""
    return context.bench.finished_part(NAME, file_name(phase.trained)) is not None


def compress_more(context: Context, directory: Path, phase: Phase) -> None:
    """Compress the phase's remaining parts; each is durable once it is written."""
    parts = PartFiles(context.bench, [StagePlace(NAME, range(phase.first, phase.trained))], directory)
    labels, count = phase.plan.labels(inspect.model_inventory(context)), len(compress.schedule(context))
    if len(parts) == len(labels):
        return
    if compress.parts_before(context, phase.trained, directory).made_elsewhere():
        context.resumed(block=labels[len(parts)].block)
    original = compute.open_model(context, inspect.model_dir(context))
    for done in compression(
        EditedModel(original, compress.parts_before(context, phase.first)),
        phase.plan,
        calibrate.calibration(context),
        parts,
        sensitivities=sensitivities_of(context),
    ):
        place = labels[min(done, len(labels) - 1)].text
        fraction = training.progress_of(phase, count, compressed=done / len(labels))
        context.progress(fraction, f"{training.phase_prefix(phase, count)}{place}")


def curves(context: Context) -> tuple[Curve, ...]:
    """Return the loss curve of each phase; none if the recipe asks for no distillation or no structure is lost."""
    if names.DISTILL not in context.results:
        return ()
    if not training.tokens_of(context).structure:
        return ()
    files = (training.curve_name(phase.number) for phase in compress.schedule(context))
    return tuple(read_curve(context.bench.part(NAME, file)) for file in files)


STAGE = Stage(names.DISTILL, run, wanted=lambda recipe: recipe.distillation is not None)
