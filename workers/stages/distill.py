"""Train the compressed model to predict what the original predicts. What was trained becomes one more part.

Where the recipe asks for several steps, the first group of matrices was compressed before; here follow a training, the
next group, the next training. Each part and each training is durable by itself. Several processes train together
where there are several GPUs.
"""

import logging
from pathlib import Path

from app.contract.job import Stage
from workers.compression.phases import Phase, compress_phase
from workers.stages import calibrate, compress, compute, inspect, training
from workers.stages.context import Context
from workers.stages.curve import Curve, read_curve
from workers.stages.part_files import write_part
from workers.stages.plan import plan_of, sensitivities_of
from workers.stages.ranks import train_in_processes

log = logging.getLogger(__name__)

NAME = str(Stage.DISTILL)


def run(context: Context, directory: Path) -> None:
    for phase in compress.schedule(context):
        unfinished = first_unfinished(context, phase)
        if phase.number and unfinished < phase.trained:
            compress_more(context, directory, phase, unfinished)
        if unfinished <= phase.trained:
            train(context, phase)


def processes(context: Context) -> int:
    """How many train together: each computes at least one of the sequences of a step."""
    distillation = context.assignment.recipe.distillation
    if distillation is None:
        return 1
    several = min(compute.processes(context), distillation.sequences)
    if distillation.sharded:
        # Those that gather weights together compute equally often.
        even = max(number for number in range(1, several + 1) if distillation.sequences % number == 0)
        if even < several:
            log.warning("%d of %d processes train, since each is to have as many sequences", even, several)
        return even
    return several


def train(context: Context, phase: Phase) -> None:
    several = processes(context)
    if several > 1:
        train_in_processes(context, phase, several)
    else:
        training.train_phase(context, phase)


def first_unfinished(context: Context, phase: Phase) -> int:
    """The first of the phase's parts that this stage has still to make; beyond them where none is left."""
    first = phase.first if phase.number else phase.trained
    return compress.first_unfinished(context, NAME, range(first, phase.trained + 1))


def compress_more(context: Context, directory: Path, phase: Phase, start: int) -> None:
    """The phase's parts from the number `start` on."""
    inventory, plan, count = inspect.model_inventory(context), plan_of(context), len(compress.schedule(context))
    if compress.found(context, NAME, compress.file_name(start - 1)).parent != directory:
        # An earlier attempt came so far.
        context.resumed(block=compress.block_of(start - phase.number, inventory, plan))
    parts = compress_phase(
        compute.open_model(context, inspect.model_dir(context)),
        plan,
        calibrate.calibration(context),
        phase,
        sensitivities=sensitivities_of(context),
        start=start,
        finished=compress.FinishedParts(context, phase.trained).__getitem__,
    )
    for part in parts:
        path = directory / compress.file_name(part.index)
        write_part(path, part)
        context.bench.finish_part(path)
        done = part.index + 1
        del part  # or it stays in memory beside the next one
        place = compress.place_of(min(done, phase.trained - 1) - phase.number, inventory, plan)
        fraction = training.progress_of(phase, count, compressed=(done - phase.first) / len(phase.parts))
        context.progress(fraction, f"{training.in_phase(phase, count)}{place}")


def curves(context: Context) -> tuple[Curve, ...]:
    """How each training went; nothing where the recipe asks for none."""
    if Stage.DISTILL not in context.results:
        return ()
    names = map(training.curve_name, compress.schedule(context))
    return tuple(read_curve(compress.found(context, NAME, name)) for name in names)
