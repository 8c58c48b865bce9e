"""All parts of a compressed model, in order, whatever its plan asks for.

A plan that resizes yields one part for each block that is fused into its neighbours, then one for each block whose MLP
is narrowed. Any other yields the parts of `sequential`.

Promise: resumed behind any part, the rest is the same as without the interruption.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor

from workers.compression import sequential
from workers.compression.accounting import Plan
from workers.compression.architectures import Inventory
from workers.compression.edits import EditedModel
from workers.compression.fusion import CheckpointStore, FusionSettings, fuse
from workers.compression.influence import removals
from workers.compression.models import StreamedModel
from workers.compression.sensitivity import Sensitivity
from workers.compression.sequential import CompressedPart
from workers.compression.width import narrow

INFLUENCE_SEQUENCES, INFLUENCE_LENGTH = 4, 512
"""How much text shows which block can go: that of the published measurements, and more moved no choice."""


def resizes(plan: Plan) -> bool:
    return plan.removed > 0 or plan.intermediate_size is not None


def part_count(inventory: Inventory, plan: Plan) -> int:
    """How many parts the plan's model has."""
    if not resizes(plan):
        return sequential.part_count(inventory)
    narrowed = inventory.blocks - plan.removed if plan.intermediate_size is not None else 0
    return plan.removed + narrowed


def compress(
    model: StreamedModel,
    plan: Plan,
    ids: Tensor,
    *,
    sensitivities: Mapping[str, Sensitivity] | None = None,
    start: int = 0,
    finished: Callable[[int], CompressedPart] | None = None,
    checkpoints: CheckpointStore | None = None,
) -> Iterator[CompressedPart]:
    """Yields the parts from index `start` on, in order; see `sequential.compress` for the arguments.

    `checkpoints` keep what a fusion has trained so far. Raises ValueError for a `start` above 0 without `finished`.
    """
    if start and finished is None:
        raise ValueError("to resume, say where the finished parts are")
    if resizes(plan):
        yield from _resized(model, plan, ids, start, finished, checkpoints)
    else:
        yield from sequential.compress(model, plan, ids, sensitivities=sensitivities, start=start, finished=finished)


def _resized(
    model: StreamedModel,
    plan: Plan,
    ids: Tensor,
    start: int,
    finished: Callable[[int], CompressedPart] | None,
    checkpoints: CheckpointStore | None,
) -> Iterator[CompressedPart]:
    edited, fused = EditedModel(model), min(start, plan.removed)
    going = removals(edited, ids[:INFLUENCE_SEQUENCES, :INFLUENCE_LENGTH], plan.removed - fused)
    yield from fuse(
        model, edited, ids, going, FusionSettings(), start=fused, finished=finished, checkpoints=checkpoints
    )
    if plan.intermediate_size is None:
        return
    narrowed = None if finished is None else partial(_behind, finished, plan.removed)
    start = max(0, start - plan.removed)
    for part in narrow(edited, plan.intermediate_size, ids, original=model, start=start, finished=narrowed):
        yield dataclasses.replace(part, index=plan.removed + part.index)


def _behind(finished: Callable[[int], CompressedPart], parts: int, index: int) -> CompressedPart:
    """The finished part that comes so many parts later."""
    return finished(parts + index)
