"""A removed block whose neighbours take it up, by distilling the few blocks around the gap alone.

The group's blocks are grafted with the removed one's weights (`grafting`), trained until what leaves the group is what
the original has at that place (`local_distillation`), and folded back to plain weights.

Promise: one group of blocks is in memory at a time, beside the streams. Killed and resumed, also within a distillation,
it gives the same parts.
"""

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.compression.models.edited import EditedModel
from workers.compression.parts import CompressedPart
from workers.compression.spec.steps import Absorb
from workers.compression.steps.grafting import Ranks, folded, graft
from workers.compression.steps.local_distillation import Distillation, distil, relative_error
from workers.compression.steps.streams import Stream
from workers.compression.steps.variants import run_in_batches
from workers.compression.steps.work import CheckpointStore, Work

_RANKS = Ranks(coefficients=32, correction=32)


@dataclass(frozen=True)
class Absorption:
    """How `survivors` blocks around a removed one take it up: by a distillation of their own for each removed block,
    with a checkpoint every `interval` steps."""

    distillation: Distillation
    survivors: int = 7
    ranks: Ranks = _RANKS
    interval: int = 25


@dataclass(frozen=True)
class Absorbed:
    """All tensors of a group by their full names, and how far what leaves it is from its target, relative."""

    tensors: Mapping[str, Tensor]
    error: float


def survivors_around(kept: Sequence[int], block: int, count: int) -> tuple[int, ...]:
    """The `count` of the other blocks kept that lie around `block`, or nearer to an end of the model: of an odd number
    one more before it than behind it."""
    others = [each for each in kept if each != block]
    start = max(0, min(bisect(others, block) - (count + 1) // 2, len(others) - count))
    return tuple(others[start : start + count])


def following(model: EditedModel, index: int, removed: int) -> int:
    """The block that comes next once `removed` is gone, or the number of blocks: what enters it in the original is what
    should leave the block `index`."""
    later = (block for block in model.kept if block > index and block != removed)
    return next(later, model.inventory.blocks)


def run(step: Absorb, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each block that is missing, from the first to the last, behind the finished ones."""
    removed = work.original.inventory.blocks - len(work.model.kept)
    # Rounded up, so that each block is distilled over some tokens where any are asked for.
    yield from absorb_each(work, Absorption(Distillation(-(-step.tokens // removed), batch=1)), len(finished))


def absorb_each(work: Work, settings: Absorption, finished: int = 0) -> Iterator[CompressedPart]:
    """Yield one part for each block that `work.model` lacks, but for the first ones that are finished already."""
    model = work.model
    removed = [block for block in range(model.inventory.blocks) if block not in model.kept]
    wanted, present = Stream(work.original, work.ids), Stream(model, work.ids)
    for block in removed[finished:]:
        group = survivors_around(model.kept, block, settings.survivors)
        entering = present.entering(group[0])
        targets = wanted.entering(following(model, group[-1], block))
        name = f"{model.inventory.block_prefix}.{block}"
        with work.original.block(block) as donor:
            found = absorb(model, group, donor, entering, targets, settings, name, work.checkpoints)
        present.forget(group[0])
        yield CompressedPart(name, tensors=found.tensors, errors={name: found.error})


def absorb(
    model: EditedModel,
    group: Sequence[int],
    donor: nn.Module,
    entering: Tensor,
    targets: Tensor,
    settings: Absorption,
    part: str,
    checkpoints: CheckpointStore | None = None,
) -> Absorbed:
    """What the blocks of the `group` become once they have taken up the `donor`; `model` stays as it is.

    `entering` and `targets` [N, T, H] are what enters the first of the group and what should leave the last. `part` is
    the name under which the checkpoints are kept.
    """
    with ExitStack() as stack:
        blocks = {index: stack.enter_context(model.block(index)) for index in group}
        dtype = torch.float32 if settings.distillation.float32 else model.dtype
        for index, block in blocks.items():
            graft(block, donor, settings.ranks, dtype=dtype, seed=index)
        resumed = checkpoints.latest(part) if checkpoints else None
        for checkpoint in distil(
            model, blocks, entering, targets, settings.distillation, interval=settings.interval, resumed=resumed
        ):
            if checkpoints:
                checkpoints.keep(part, checkpoint)
        prefix = model.inventory.block_prefix
        tensors = {
            f"{prefix}.{index}.{name}": each for index, block in blocks.items() for name, each in folded(block).items()
        }
        return Absorbed(tensors, _error(model, blocks, entering, targets))


@torch.no_grad()
def _error(model: EditedModel, blocks: Mapping[int, nn.Module], hidden: Tensor, targets: Tensor) -> float:
    """As the root mean square over tokens."""
    for index, block in blocks.items():
        hidden = run_in_batches(model, block, index, hidden)
    pairs = zip(hidden, targets, strict=True)
    return math.sqrt(sum(relative_error(one.float(), other.float()).item() for one, other in pairs) / len(hidden))
