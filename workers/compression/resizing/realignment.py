"""One sweep over a model that has lost blocks, after which its stream is again near the original's. No training.

    parts = list(realign(original, edited, ids))      # one part for each block that remains

The last projection before each gap is refitted to what the original has after the gap, that of every other block partly
to what the original has there: each on the stream that the refits before it have left.

Promise: every block is refitted once, from the weights that the model had, so that nothing is fitted twice to the same
text.
"""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart, Finished
from workers.compression.resizing.refit import Refit, refit, refitted_tensors
from workers.compression.resizing.streams import PairedStreams

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
    if finished is not None and start >= first + len(edited.kept):
        for number in range(first, first + len(edited.kept)):
            edited.apply(finished(number))
        return
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        streams = PairedStreams(original, edited, ids, Path(scratch))
        streams.advance_original(0, edited.kept[0])
        places = pairwise((*edited.kept, edited.inventory.blocks))
        for number, (index, following) in enumerate(places, first):
            streams.advance_original(index, following)
            if number < start and finished is not None:
                edited.apply(finished(number))
                with edited.block(index) as block:
                    streams.advance_model(block, index)
                continue
            settings = elsewhere if following == index + 1 else before
            nothing_is_missing_yet = following == number - first + 1
            part = _realigned(streams, index, number, None if nothing_is_missing_yet else settings)
            edited.apply(part)
            yield part


def _realigned(streams: PairedStreams, index: int, number: int, settings: Refit | None) -> CompressedPart:
    """The part that a block is; the model's stream passes it."""
    name = f"{streams.model.inventory.block_prefix}.{index}"
    with streams.model.block(index) as block:
        if settings is None:
            streams.advance_model(block, index)
            return CompressedPart(number, name, {}, {}, {})
        refit(streams.model, block, index, streams.after, streams.before, settings)
        streams.advance_model(block, index)
        return CompressedPart(number, name, {}, refitted_tensors(streams.model, block, index), {name: streams.error()})
