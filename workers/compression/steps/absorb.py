"""Distil each removed block into the few blocks around it.

The removed block's weights are grafted onto the blocks of the group (`grafting`). The group is trained until its output
is near the original's hidden states at that place (`local_distillation`). The graft is then folded into plain weights.

Promise: one group of blocks is in memory at a time, beside the hidden states. A run that is killed and resumed, also
within a distillation, yields the same parts.
"""

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelpress.spec.steps import Absorb
from workers.compression.models.edited import EditedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.grafting import GraftRanks, folded_tensors, graft
from workers.compression.steps.local_distillation import LocalDistillationSettings, distil_blocks, relative_error
from workers.compression.steps.streams import Stream
from workers.compression.steps.variants import run_in_batches
from workers.compression.steps.work import Work
from workers.compression.training.loop import Observer

_RANKS = GraftRanks(coefficients=32, correction=32)


@dataclass(frozen=True)
class Absorption:
    """Settings for distilling a removed block into the blocks around it.

    Attributes:
        distillation: training settings for each removed block.
        survivors: number of blocks around the gap to train.
        ranks: ranks of the graft onto each of these blocks.
    """

    distillation: LocalDistillationSettings
    survivors: int = 7
    ranks: GraftRanks = _RANKS


@dataclass(frozen=True)
class Absorbed:
    """The result of distilling a removed block into its group.

    Attributes:
        tensors: all tensors of the trained blocks by their full names.
        error: relative error ‖output − target‖ / ‖target‖ of the group's output, as a root mean square over tokens.
    """

    tensors: Mapping[str, Tensor]
    error: float


def survivors_around(kept: Sequence[int], block: int, count: int) -> tuple[int, ...]:
    """Return the `count` blocks of `kept` around `block`, without `block` itself; fewer if the model has fewer.

    If `count` is odd, one more lies before the block than behind it. Near an end of the model, more lie on the other
    side.
    """
    others = [each for each in kept if each != block]
    start = max(0, min(bisect(others, block) - (count + 1) // 2, len(others) - count))
    return tuple(others[start : start + count])


def next_block(model: EditedModel, index: int, removed: int) -> int:
    """Return the next remaining block after `index`, without `removed`; the number of blocks if there is none.

    The input of that block in the original model is the target for the output of block `index`.
    """
    later = (block for block in model.kept if block > index and block != removed)
    return next(later, model.inventory.blocks)


def run(step: Absorb, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each removed block, in the order of the model, after the `finished` ones."""
    removed = work.original.inventory.blocks - len(work.model.kept)
    # Rounded up, so that each block is distilled over some tokens where any are asked for.
    settings = LocalDistillationSettings(-(-step.tokens // removed), batch_size=1)
    yield from absorb_each(work, Absorption(settings), len(finished))


def absorb_each(work: Work, settings: Absorption, finished: int = 0) -> Iterator[CompressedPart]:
    """Yield one part for each block that `work.model` lacks, in order; the first `finished` ones are skipped."""
    model = work.model
    removed = [block for block in range(model.inventory.blocks) if block not in model.kept]
    wanted, present = Stream(work.original, work.ids), Stream(model, work.ids)
    for block in removed[finished:]:
        group = survivors_around(model.kept, block, settings.survivors)
        entering = present.entering(group[0])
        targets = wanted.entering(next_block(model, group[-1], block))
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
    """Distil the block `donor` into the blocks of `group`, and return their new tensors; `model` stays unchanged.

    Args:
        group: indices of consecutive remaining blocks, in order.
        donor: the removed block with the original's weights.
        entering: hidden states [N, T, H] that enter the first block of the group.
        targets: hidden states [N, T, H] that the last block of the group is trained to output.
        settings: settings of the distillation and ranks of the graft.
        observer: keeps the checkpoints of the distillation.

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
            for name, tensor in folded_tensors(block).items()
        }
        return Absorbed(model.in_files(tensors), _error(model, blocks, entering, targets))


@torch.no_grad()
def _error(model: EditedModel, blocks: Mapping[int, nn.Module], hidden: Tensor, targets: Tensor) -> float:
    """Return the relative error of the blocks' output, as a root mean square over tokens.

    `hidden` [N, T, H] enters the first block; `targets` [N, T, H] is compared with the output of the last.
    """
    for index, block in blocks.items():
        hidden = run_in_batches(model, block, index, hidden)
    pairs = zip(hidden, targets, strict=True)
    return math.sqrt(sum(relative_error(ours, wanted).item() for ours, wanted in pairs) / len(hidden))
