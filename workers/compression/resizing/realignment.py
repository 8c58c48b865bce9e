"""One sweep over a model that has lost blocks, after which its stream is again near the original's. No training.

    parts = list(realign(original, edited, ids))      # one part for each block from the first gap on

The last projection before each gap is refitted to what the original has after the gap, that of every other block partly
to what the original has there: each on the stream that the refits before it have left.

Promise: every block is refitted once, from the weights that the model had, so that nothing is fitted twice to the same
text.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart, Finished
from workers.compression.resizing.refit import Refit, projection_tensors, refit
from workers.compression.resizing.streams import Stream

BEFORE_A_GAP = Refit(ridge=0.5)
ELSEWHERE = Refit(ridge=1.0, share=0.5)


@torch.no_grad()
def realign(
    original: StreamedModel,
    edited: EditedModel,
    ids: Tensor,
    *,
    before: Refit = BEFORE_A_GAP,
    elsewhere: Refit = ELSEWHERE,
    first: int = 0,
    start: int = 0,
    finished: Finished | None = None,
) -> Iterator[CompressedPart]:
    """Yields one part for each block from the one before the first gap on, and applies it to `edited`.

    `ids` are calibration tokens [sequences, length]. Parts are numbered from `first` on. When resuming at the number
    `start`, `edited` is as it was before the sweep, and `finished` gives the parts from `first` up to there.
    """
    following = dict(pairwise((*edited.kept, edited.inventory.blocks)))
    gaps = [block for block, after in following.items() if after > block + 1]
    swept = [block for block in edited.kept if gaps and block >= gaps[0]]
    wanted, present = Stream(original, ids), Stream(edited, ids)
    for number, index in enumerate(swept, first):
        if number < start and finished is not None:
            edited.apply(finished(number))
            continue
        settings = before if index in gaps else elsewhere
        hidden, targets = present.entering(index), wanted.entering(following[index])
        with edited.block(index) as block:
            output = refit(edited, block, index, hidden, targets, settings)
            tensors = projection_tensors(edited, block, index)
        name = f"{edited.inventory.block_prefix}.{index}"
        error = ((output - targets).float().norm() / targets.float().norm()).item()
        part = CompressedPart(number, name, {}, tensors, {name: error})
        edited.apply(part)
        yield part
