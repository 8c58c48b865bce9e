"""One sweep over a model that has lost blocks, after which its stream is again near the original's. No training.

    parts = list(realign(original, edited, ids))      # one part for each block that remains

The last projection before each gap is refitted to what the original has after the gap. Behind the first gap every
block is partly brought back to what the original has there, at its attention's output projection and at its last one:
each on the stream that the refits before it have left. Where a norm stands behind the attention, as in Gemma 2 and 3,
that is left alone.

Promise: every projection is refitted once, from the weights that the model had, so that nothing is fitted twice to the
same text. Two blocks' weights are in memory; the two streams wait in a temporary directory.
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
from workers.compression.steps.projections import (
    Refit,
    refit,
    refit_attention,
    refitted_tensors,
    stream_behind_attention,
)
from workers.compression.steps.streams import PairedStreams

# Tried on SmolLM2-135M without eight blocks, on text apart from that of bench/RESULTS.md: a third of these ridges did
# as well, twice as much a little worse.
BEFORE_A_GAP = Refit(ridge=0.3)
ELSEWHERE = Refit(ridge=0.5, share=0.5)
ATTENTION = Refit(ridge=0.3, share=0.5)


@torch.no_grad()
def realign(
    original: StreamedModel,
    edited: EditedModel,
    ids: Tensor,
    *,
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
            if number < start and finished is not None:
                edited.apply(finished(number))
                streams.advance_original(index, following)
                with edited.block(index) as block:
                    streams.advance_model(block, index)
                continue
            part = _realigned(streams, index, following, number, removed_before=index - (number - first))
            edited.apply(part)
            yield part


def _realigned(
    streams: PairedStreams, index: int, following: int, number: int, *, removed_before: int
) -> CompressedPart:
    """The part that a block is; both streams pass it, the original's also those missing before `following`."""
    model, name = streams.model, f"{streams.model.inventory.block_prefix}.{index}"
    is_last_before_a_gap = following > index + 1
    with model.block(index) as block:
        if removed_before:
            with streams.original.block(index) as whole:
                targets = stream_behind_attention(streams.original, whole, index, streams.before)
                refit_attention(model, block, index, streams.after, targets, ATTENTION)
        streams.advance_original(index, following)
        if not removed_before and not is_last_before_a_gap:
            streams.advance_model(block, index)
            return CompressedPart(number, name, {}, {}, {})
        settings = BEFORE_A_GAP if is_last_before_a_gap else ELSEWHERE
        refit(model, block, index, streams.after, streams.before, settings)
        streams.advance_model(block, index)
        tensors = refitted_tensors(model, block, index, attention=removed_before > 0)
        return CompressedPart(number, name, {}, tensors, {name: streams.error()})
