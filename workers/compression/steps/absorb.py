"""A removed block whose neighbours take it up, by distilling the few blocks around the gap alone.

    for part in absorb_all(original, edited, ids, Absorption(Distillation(tokens=32_000)), first=30):
        ...                                           # one part for each removed block, durable

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
from typing import Protocol

import torch
from torch import Tensor, nn

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart, Finished
from workers.compression.steps.grafting import Ranks, folded, graft
from workers.compression.steps.local_distillation import Checkpoint, Distillation, distil, relative_error
from workers.compression.steps.streams import Stream
from workers.compression.steps.variants import run_in_batches

_RANKS = Ranks(coefficients=32, correction=32)


@dataclass(frozen=True)
class Absorption:
    """How `survivors` blocks around a removed one take it up: by a distillation of their own for each removed block,
    with a checkpoint every `interval` steps."""

    distillation: Distillation
    survivors: int = 7
    ranks: Ranks = _RANKS
    interval: int = 25


class CheckpointStore(Protocol):
    """Where the checkpoints within a distillation are kept."""

    def latest(self, part: int) -> Checkpoint | None:
        """The last one that was written for the part, if any."""

    def keep(self, part: int, checkpoint: Checkpoint) -> None:
        """Writes one down; its tensors change afterwards."""


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


def absorb_all(
    original: StreamedModel,
    edited: EditedModel,
    ids: Tensor,
    settings: Absorption,
    *,
    first: int = 0,
    start: int = 0,
    finished: Finished | None = None,
    checkpoints: CheckpointStore | None = None,
) -> Iterator[CompressedPart]:
    """Yields one part for each block that `edited` lacks, from the first to the last, and applies it to `edited`.

    `ids` are calibration tokens [sequences, length]. Parts are numbered from `first` on. When resuming at the number
    `start`, `edited` is as it was before the first of them, and `finished` gives the parts from `first` up to there.
    """
    wanted, present = Stream(original, ids), Stream(edited, ids)
    removed = [block for block in range(edited.inventory.blocks) if block not in edited.kept]
    for index, block in enumerate(removed, first):
        if index < start and finished is not None:
            edited.apply(finished(index))
            continue
        group = survivors_around(edited.kept, block, settings.survivors)
        entering = present.entering(group[0])
        targets = wanted.entering(following(edited, group[-1], block))
        with original.block(block) as donor:
            found = absorb(edited, group, donor, entering, targets, settings, index, checkpoints)
        name = f"{edited.inventory.block_prefix}.{block}"
        part = CompressedPart(index, name, structures={}, tensors=found.tensors, errors={name: found.error})
        edited.apply(part)
        present.forget(group[0])
        yield part


def absorb(
    model: EditedModel,
    group: Sequence[int],
    donor: nn.Module,
    entering: Tensor,
    targets: Tensor,
    settings: Absorption,
    part: int,
    checkpoints: CheckpointStore | None = None,
) -> Absorbed:
    """What the blocks of the `group` become once they have taken up the `donor`; `model` stays as it is.

    `entering` and `targets` [N, T, H] are what enters the first of the group and what should leave the last. `part` is
    the number under which the checkpoints are kept.
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
