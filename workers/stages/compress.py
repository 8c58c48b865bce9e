"""Compress the model part by part. Each finished part is durable, so a new attempt goes on behind the last one."""

from collections.abc import Iterator
from pathlib import Path

from app.contract.job import Stage
from workers.compression.accounting.architectures import Inventory
from workers.compression.accounting.plans import Plan
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress, fused_parts, part_count, resized_parts
from workers.compression.resizing.local_distillation import Checkpoint
from workers.stages import calibrate, compute, inspect
from workers.stages.absorption_files import CheckpointFiles
from workers.stages.context import Context
from workers.stages.part_files import read_part, write_part
from workers.stages.plan import plan_of, sensitivities_of

NAME = str(Stage.COMPRESS)


def run(context: Context, directory: Path) -> None:
    model = compute.open_model(context, inspect.model_dir(context))
    plan = plan_of(context)
    count = part_count(model.inventory, plan)
    start = first_unfinished(context, count)
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
        finished=lambda index: read_part(part_path(context, index)),
        checkpoints=checkpoints,
        seed=context.assignment.recipe.seed,
    )
    for part in parts:
        path = directory / file_name(part.index)
        write_part(path, part)
        context.bench.finish_part(path)
        checkpoints.clear(part.index)
        done = part.index + 1
        del part  # or it stays in memory beside the next one
        context.progress(done / count, place_of(min(done, count - 1), model.inventory, plan))


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
    """The parts of the whole compressed model, in order, each read anew whenever it is asked for; what distillation
    trained is the last, once it has."""

    def __init__(self, context: Context) -> None:
        count = part_count(inspect.model_inventory(context), plan_of(context))
        self.paths = [part_path(context, index) for index in range(count)]
        if Stage.DISTILL in context.results:
            self.paths.append(context.results[Stage.DISTILL] / file_name(count))

    def __iter__(self) -> Iterator[CompressedPart]:
        return map(read_part, self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def first_unfinished(context: Context, count: int) -> int:
    return next((i for i in range(count) if context.bench.finished_part(NAME, file_name(i)) is None), count)


def part_path(context: Context, index: int) -> Path:
    path = context.bench.finished_part(NAME, file_name(index))
    if path is None:
        raise FileNotFoundError(f"part {index} of the compressed model is gone")
    return path


def file_name(index: int) -> str:
    return f"part-{index:05d}.safetensors"
