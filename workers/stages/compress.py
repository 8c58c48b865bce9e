"""Compress the model part by part. Each finished part is durable, so a new attempt goes on behind the last one.

Where the recipe asks for a distillation in several steps, these are the parts before the first training.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from app.contract.job import Stage
from workers.compression.parts import CompressedPart
from workers.compression.phases import Phase, phases
from workers.compression.pipeline import compress, fused_parts, resized_parts
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.plans import Plan
from workers.compression.steps.local_distillation import Checkpoint
from workers.stages import calibrate, compute, inspect
from workers.stages.absorption_files import CheckpointFiles
from workers.stages.context import Context
from workers.stages.part_files import read_part, write_part
from workers.stages.plan import plan_of, sensitivities_of

NAME = str(Stage.COMPRESS)


def run(context: Context, directory: Path) -> None:
    model = compute.open_model(context, inspect.model_dir(context))
    plan = plan_of(context)
    count = len(schedule(context)[0].parts)
    start = first_unfinished(context, NAME, range(count))
    if start > 0:
        place = min(start, count - 1)  # all parts may be finished already
        context.resumed(block=block_of(place, model.inventory, plan))
        context.progress(start / count, f"going on from {place_of(place, model.inventory, plan)}")

    def tell(part: int, checkpoint: Checkpoint) -> None:
        place = place_of(part, model.inventory, plan)
        context.progress(part / count, f"{place}, step {checkpoint.step} of its distillation")

    checkpoints = CheckpointFiles(context.bench, NAME, directory, tell)
    parts = compress(
        model,
        plan,
        calibrate.calibration(context),
        sensitivities=sensitivities_of(context),
        start=start,
        finished=FinishedParts(context, count).__getitem__,
        checkpoints=checkpoints,
        seed=context.assignment.recipe.seed,
    )
    for part in islice(parts, count - start):
        path = directory / file_name(part.index)
        write_part(path, part)
        context.bench.finish_part(path)
        checkpoints.clear(part.index)
        done = part.index + 1
        del part  # or it stays in memory beside the next one
        context.progress(done / count, place_of(min(done, count - 1), model.inventory, plan))


def schedule(context: Context) -> tuple[Phase, ...]:
    """The phases of the recipe; one where it asks for no distillation, which then has no training."""
    distillation = context.assignment.recipe.distillation
    steps = 1 if distillation is None else distillation.steps
    return phases(inspect.model_inventory(context), plan_of(context), steps)


def block_of(part: int, inventory: Inventory, plan: Plan) -> int | None:
    """The block that a part is, or stands before; None where it is none or not known before it is chosen."""
    factored = part - resized_parts(inventory, plan)
    return max(factored - 1, 0) if 0 <= factored <= inventory.blocks else None


def place_of(part: int, inventory: Inventory, plan: Plan) -> str:
    """What a part is, for people. In a model of factors part 0 is the embedding and the head comes last."""
    remaining = inventory.blocks - plan.removed
    fused, resized = fused_parts(inventory, plan), resized_parts(inventory, plan)
    if part < plan.removed:
        verb = "removing" if fused > plan.removed else "fusing away"
        return f"{verb} block {part + 1} of {plan.removed}"
    if part < min(fused, inventory.blocks):
        return f"refitting block {part - plan.removed + 1} of {remaining}"
    if part < fused:
        return f"distilling removed block {part - inventory.blocks + 1} of {plan.removed} into those around it"
    if part < resized:
        return f"narrowing block {part - fused + 1} of {remaining}"
    block = block_of(part, inventory, plan)
    return "the output head" if block is None else f"block {block + 1} of {inventory.blocks}"


class FinishedParts:
    """The parts of the compressed model, in order, each read anew whenever it is asked for. What a training left stands
    behind those that it was made of."""

    def __init__(self, context: Context, count: int | None = None) -> None:
        """`count`: the first so many; all that the finished stages have left, if none is given."""
        planned = schedule(context)
        self._context, self._compressed = context, len(planned[0].parts)
        distilled = planned[-1].trained + 1 if Stage.DISTILL in context.results else self._compressed
        self._count = distilled if count is None else count
        self._paths: dict[int, Path] = {}

    def __getitem__(self, index: int) -> CompressedPart:
        if index not in self._paths:
            stage = NAME if index < self._compressed else Stage.DISTILL
            self._paths[index] = found(self._context, stage, file_name(index))
        return read_part(self._paths[index])

    def __iter__(self) -> Iterator[CompressedPart]:
        return map(self.__getitem__, range(self._count))

    def __len__(self) -> int:
        return self._count


def first_unfinished(context: Context, stage: str, parts: range) -> int:
    """The number of the first of these parts that the stage has not finished, or the one behind them all."""
    return next((i for i in parts if context.bench.finished_part(stage, file_name(i)) is None), parts.stop)


def found(context: Context, stage: str, name: str) -> Path:
    """A finished part of a stage's result. Raises FileNotFoundError."""
    path = context.bench.finished_part(stage, name)
    if path is None:
        raise FileNotFoundError(f"{name} of the stage {stage} is gone")
    return path


def file_name(index: int) -> str:
    return f"part-{index:05d}.safetensors"
