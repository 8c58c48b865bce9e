"""One sweep over a model that has lost blocks, after which its stream is again near the original's. No training.

    parts = list(realign(original, edited, ids))      # one part for each block that remains

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
    """Yields one part for each block that remains, and applies it to `edited`; up to the first gap there is nothing to
    refit, and the parts are empty.

    `ids` are calibration tokens [sequences, length]. Parts are numbered from `first` on. When resuming at the number
    `start`, `edited` is as it was before the sweep, and `finished` gives the parts from `first` up to there.
    """
    following = dict(pairwise((*edited.kept, edited.inventory.blocks)))
    first_gap = next((index for index in range(edited.inventory.blocks) if index not in edited.kept), None)
    wanted, present = Stream(original, ids), Stream(edited, ids)
    for number, index in enumerate(edited.kept, first):
        if number < start and finished is not None:
            edited.apply(finished(number))
            continue
        name = f"{edited.inventory.block_prefix}.{index}"
        part = CompressedPart(number, name, {}, {}, {})
        if first_gap is not None and following[index] > first_gap:
            settings = before if following[index] > index + 1 else elsewhere
            hidden, targets = present.entering(index), wanted.entering(following[index])
            with edited.block(index) as block:
                output = refit(edited, block, index, hidden, targets, settings)
                tensors = projection_tensors(edited, block, index)
            error = ((output - targets).float().norm() / targets.float().norm()).item()
            part = CompressedPart(number, name, {}, tensors, {name: error})
        edited.apply(part)
        yield part
