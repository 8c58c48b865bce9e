"""Fewer blocks: which go, and how those that stay take over what they did. The result is an ordinary checkpoint.

    for part in fuse(original, edited, ids, removals(edited, some, 8), count=8):
        ...                                           # durable

First every block that goes is chosen, then one sweep refits the projections into the stream in closed form
(`realignment`), then, where it is asked for, the blocks around each gap take up the removed one's weights by
distillation (`absorption`). The reference is always the original model.

Promise: killed and resumed behind any part, also within a distillation, the rest is the same as without.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart, Finished
from workers.compression.steps.absorb import Absorption, CheckpointStore, absorb_all
from workers.compression.steps.influence import BlockScores
from workers.compression.steps.refit import realign
from workers.compression.steps.remove import removal_parts


def part_count(blocks: int, removed: int, *, absorbs: bool) -> int:
    """How many parts a model of so many blocks has that loses some: each removal, each refit, each absorption."""
    return blocks + (removed if absorbs else 0)


def fuse(
    original: StreamedModel,
    edited: EditedModel,
    ids: Tensor,
    removals: Iterable[tuple[int, BlockScores]],
    count: int,
    absorption: Absorption | None = None,
    *,
    start: int = 0,
    finished: Finished | None = None,
    checkpoints: CheckpointStore | None = None,
) -> Iterator[CompressedPart]:
    """Yields the parts from index `start` on, and applies them to `edited`.

    `ids` are calibration tokens [sequences, length]. `count` blocks go in all; `removals` are those still to come when
    resuming, and are only asked for as long as some are. `finished` then gives the parts before `start`, which `edited`
    has as far as they are removals.
    """
    if start < count:
        for part in removal_parts(edited.inventory, removals, start):
            edited.apply(part)
            yield part
    yield from realign(original, edited, ids, first=count, start=start, finished=finished)
    if absorption is not None:
        first = part_count(edited.inventory.blocks, count, absorbs=False)
        yield from absorb_all(
            original, edited, ids, absorption, first=first, start=start, finished=finished, checkpoints=checkpoints
        )
