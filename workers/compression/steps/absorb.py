"""A removed block whose neighbours take it up, by distilling the few blocks around the gap alone.

The removed block's weights are grafted onto the group's blocks (`grafting`), these are trained until what leaves the
group is what the original has at that place (`local_distillation`), and then folded back to plain weights.

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
from workers.compression.steps.grafting import GraftRanks, folded, graft
from workers.compression.steps.local_distillation import LocalDistillationSettings, distil_blocks, relative_error
from workers.compression.steps.streams import Stream
from workers.compression.steps.variants import run_in_batches
from workers.compression.steps.work import Work
from workers.compression.training.loop import Observer

_RANKS = GraftRanks(coefficients=32, correction=32)


@dataclass(frozen=True)
class Absorption:
    """How the blocks around a removed one take it up.

    Attributes:
        distillation: settings of the training that each removed block gets.
        survivors: number of blocks around the gap that are trained.
        ranks: ranks of the graft onto each of them.
    """

    distillation: LocalDistillationSettings
    survivors: int = 7
    ranks: GraftRanks = _RANKS


@dataclass(frozen=True)
class Absorbed:
    """All tensors of a trained group by their full names.

    `error` is the norm of what leaves the group minus its target over the norm of the target, as a root mean square
    over tokens.
    """

    tensors: Mapping[str, Tensor]
    error: float


def survivors_around(kept: Sequence[int], block: int, count: int) -> tuple[int, ...]:
    """Return the `count` blocks of `kept` that lie around `block`, without itself; fewer where there are fewer.

    Of an odd count one more lies before the block. Near an end of the model more of them lie on the other side.
    """
    others = [each for each in kept if each != block]
    start = max(0, min(bisect(others, block) - (count + 1) // 2, len(others) - count))
    return tuple(others[start : start + count])


def following(model: EditedModel, index: int, removed: int) -> int:
    """Return the block that follows `index` once `removed` is gone; the number of blocks if none does.

    What enters that block in the original is the target of what leaves block `index`.
    """
    later = (block for block in model.kept if block > index and block != removed)
    return next(later, model.inventory.blocks)


def run(step: Absorb, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each block that is missing, from the first to the last, behind the finished ones."""
    removed = work.original.inventory.blocks - len(work.model.kept)
    # Rounded up, so that each block is distilled over some tokens where any are asked for.
    settings = LocalDistillationSettings(-(-step.tokens // removed), batch_size=1)
    yield from absorb_each(work, Absorption(settings), len(finished))


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
            found = absorb(model, group, donor, entering, targets, settings, work.observer(name))
        present.forget(group[0])
        yield CompressedPart(name, tensors=found.tensors, errors={name: found.error})


def absorb(
    model: EditedModel,
    group: Sequence[int],
    donor: nn.Module,
    entering: Tensor,
    targets: Tensor,
    settings: Absorption,
    observer: Observer | None = None,
) -> Absorbed:
    """Return what the blocks of `group` become once they have taken up the block `donor`; `model` stays unchanged.

    Args:
        entering: states [N, T, H] that enter the first block of the group.
        targets: states [N, T, H] that are to leave the last.
        observer: where the checkpoints of the distillation are kept.

    Raises:
        Diverged: when the distillation finds no finite loss even at lower learning rates.
    """
    with ExitStack() as stack:
        blocks = {index: stack.enter_context(model.block(index)) for index in group}
        dtype = torch.float32 if settings.distillation.float32 else model.dtype
        for index, block in blocks.items():
            graft(block, donor, settings.ranks, dtype=dtype, seed=index)
        distil_blocks(model, blocks, entering, targets, settings.distillation, observer)
        prefix = model.inventory.block_prefix
        tensors = {
            f"{prefix}.{index}.{name}": tensor
            for index, block in blocks.items()
            for name, tensor in folded(block).items()
        }
        return Absorbed(tensors, _error(model, blocks, entering, targets))


@torch.no_grad()
def _error(model: EditedModel, blocks: Mapping[int, nn.Module], hidden: Tensor, targets: Tensor) -> float:
    """Return the root mean square over tokens of the relative error of what leaves the blocks."""
    for index, block in blocks.items():
        hidden = run_in_batches(model, block, index, hidden)
    pairs = zip(hidden, targets, strict=True)
    return math.sqrt(sum(relative_error(ours, wanted).item() for ours, wanted in pairs) / len(hidden))
