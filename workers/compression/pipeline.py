"""All parts of a compressed model, in order, whatever its plan asks for.

A plan that resizes yields the parts of `fusion` where blocks go, then one for each block that is narrowed. The
parts of `sequential` follow where what is left is to be factored, and are all there is otherwise.

Promise: resumed behind any part, the rest is the same as without the interruption.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor

from workers.compression.math.allocation import measured_plan
from workers.compression.math.sensitivity import Sensitivity, measure
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart, Finished
from workers.compression.spec.catalog import resizing
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.plans import Plan
from workers.compression.steps import factor as sequential
from workers.compression.steps import fusion
from workers.compression.steps.absorb import Absorption, CheckpointStore
from workers.compression.steps.fuse import fuse_one_by_one, fusegpt
from workers.compression.steps.influence import removals
from workers.compression.steps.local_distillation import Distillation
from workers.compression.steps.narrow import narrow

INFLUENCE_SEQUENCES, INFLUENCE_LENGTH = 4, 512
"""How much of the calibration text shows which block can go; of a short text, half of its sequences."""

SHORTLISTED = 0.4
"""The part of the blocks, those of the least block influence, that are asked where asking is dear. On SmolLM2-135M 11
of 30 hold each of the eight blocks that the loss takes from among all."""

DEAR = ("loss_after_removal", "trial_fusion")


def resizes(plan: Plan) -> bool:
    return plan.removed > 0 or narrows(plan)


def narrows(plan: Plan) -> bool:
    return plan.intermediate_size is not None or plan.key_value_heads is not None


def part_count(inventory: Inventory, plan: Plan) -> int:
    """How many parts the plan's model has."""
    factored = sequential.part_count(inventory) if plan.factors or not resizes(plan) else 0
    return resized_parts(inventory, plan) + factored


def resized_parts(inventory: Inventory, plan: Plan) -> int:
    """The parts that fusion and narrowing yield."""
    return fused_parts(inventory, plan) + (inventory.blocks - plan.removed if narrows(plan) else 0)


def fused_parts(inventory: Inventory, plan: Plan) -> int:
    """The parts that removing blocks yields, the first of all."""
    if plan.removed == 0 or resizing(plan.method).published:
        return plan.removed
    return fusion.part_count(inventory.blocks, plan.removed, absorbs=plan.absorption_tokens > 0)


def compress(
    model: StreamedModel,
    plan: Plan,
    ids: Tensor,
    *,
    sensitivities: Mapping[str, Sensitivity] | None = None,
    start: int = 0,
    finished: Finished | None = None,
    checkpoints: CheckpointStore | None = None,
    seed: int = 0,
) -> Iterator[CompressedPart]:
    """Yields the parts from index `start` on, in order; see `sequential.compress` for the arguments.

    `finished` may be asked for every part that has been yielded: given one that reads them from files, what the later
    parts build on need not stay in memory. `checkpoints` keeps how far a distillation within a part is. `seed` is that
    of `sensitivity.measure`, where factors follow. Raises ValueError for a `start` above 0 without `finished`.
    """
    if start and finished is None:
        raise ValueError("to resume, say where the finished parts are")
    if not resizes(plan):
        yield from sequential.compress(model, plan, ids, sensitivities=sensitivities, start=start, finished=finished)
        return
    edited = EditedModel(model)
    if plan.removed:
        yield from _fused(edited, model, plan, ids, start, finished, checkpoints)
    if narrows(plan):
        yield from _narrowed(edited, model, plan, ids, start, finished)
    if plan.factors is not None:
        yield from _factored(
            edited, plan, plan.factors, ids, start - resized_parts(model.inventory, plan), finished, seed
        )


def _fused(
    edited: EditedModel,
    model: StreamedModel,
    plan: Plan,
    ids: Tensor,
    start: int,
    finished: Finished | None,
    checkpoints: CheckpointStore | None,
) -> Iterator[CompressedPart]:
    gone = min(start, plan.removed)
    if finished is not None:
        for index in range(gone):
            edited.apply(finished(index))
    criterion = cast("str", plan.criterion)
    asked = candidates(model.inventory, criterion)
    going = removals(edited, influence_text(ids), plan.removed - gone, criterion, candidates=asked)
    # Rounded up, since `fused_parts` counts on some where any are asked for.
    tokens = -(-plan.absorption_tokens // plan.removed)
    if resizing(plan.method).published:
        yield from fuse_one_by_one(edited, ids, going, fusegpt(tokens), start=gone, checkpoints=checkpoints)
        return
    absorption = Absorption(Distillation(tokens, batch=1)) if tokens else None
    yield from fusion.fuse(
        model,
        edited,
        ids,
        going,
        plan.removed,
        absorption,
        start=start,
        finished=finished,
        checkpoints=checkpoints,
    )


def candidates(inventory: Inventory, criterion: str) -> int | None:
    """How many blocks are asked each time which of them goes next; None: all."""
    return max(2, math.ceil(SHORTLISTED * inventory.blocks)) if criterion in DEAR else None


def influence_text(ids: Tensor) -> Tensor:
    """The part of the calibration tokens [sequences, length] that shows which block can go."""
    return evenly_spread(ids, min(INFLUENCE_SEQUENCES, -(-len(ids) // 2)))[:, :INFLUENCE_LENGTH]


def evenly_spread(ids: Tensor, count: int) -> Tensor:
    """At most so many of the sequences [N, T], the first and the last among them where there are several."""
    return ids[torch.linspace(0, len(ids) - 1, min(count, len(ids))).long()]


def _narrowed(
    edited: EditedModel, model: StreamedModel, plan: Plan, ids: Tensor, start: int, finished: Finished | None
) -> Iterator[CompressedPart]:
    """Parts behind those of fusion, all of which are applied at the end."""
    count, first = len(edited.kept), fused_parts(model.inventory, plan)
    held: list[CompressedPart] = []
    earlier = _behind(finished, first)
    for part in narrow(
        edited,
        plan.intermediate_size,
        ids,
        original=model,
        key_value_heads=plan.key_value_heads,
        start=max(0, start - first),
        finished=earlier,
    ):
        yield dataclasses.replace(part, index=first + part.index)
        if finished is None:
            held.append(part)
    for part in held if earlier is None else map(earlier, range(count)):
        edited.apply(part)


def _factored(
    edited: EditedModel, plan: Plan, factors: str, ids: Tensor, start: int, finished: Finished | None, seed: int
) -> Iterator[CompressedPart]:
    """Parts behind those that resize: what these left is measured, and factored down to the size that is planned."""
    first = resized_parts(edited.inventory, plan)
    measured = {name: found for part in measure(edited, ids, seed=seed) for name, found in part.items()}
    rest = measured_plan(edited.inventory, factors, edited.inventory.total_parameters / plan.parameters_after, measured)
    factored = sequential.compress(
        edited, rest, ids, sensitivities=measured, start=max(0, start), finished=_behind(finished, first)
    )
    for part in factored:
        yield dataclasses.replace(part, index=first + part.index)


def _behind(finished: Finished | None, parts: int) -> Finished | None:
    """The same parts, numbered from so many on."""
    return None if finished is None else lambda index: finished(parts + index)
