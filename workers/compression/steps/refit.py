"""Refit the remaining blocks to the original's hidden states, in one sweep without training.

The last projection before each gap is refitted to the original's hidden states behind the gap. In every block behind
the first gap, the attention's output projection and the last projection are partly refitted to the original's hidden
states at the same place. Each refit sees the hidden states that the refits before it have left. An attention that is
followed by a norm, as in Gemma 2 and 3, is left unchanged.

Promise: every projection is refitted once, from the weights that the model had, so nothing is fitted twice to the same
text. Two blocks' weights are in memory; hidden states are kept in a temporary directory.
"""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from modelpress.spec.steps import Refit as RefitStep
from workers.compression.parts import CompressedPart
from workers.compression.steps.projections import (
    Refit,
    refit,
    refit_attention,
    refitted_tensors,
    stream_behind_attention,
)
from workers.compression.steps.streams import PairedStreams
from workers.compression.steps.work import Work

# A third of these ridges did as well, twice as much a little worse; see docs/decisions/004-which-blocks-go.md.
BEFORE_A_GAP = Refit(ridge=0.3)
ELSEWHERE = Refit(ridge=0.5, share=0.5)
ATTENTION = Refit(ridge=0.3, share=0.5)


@torch.no_grad()
def run(step: RefitStep, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each remaining block, after the `finished` ones, which are in `work.model` already.

    Unless the step refits blocks `everywhere`, the parts of blocks before the first gap are empty, except for the last
    of these.
    """
    model = work.model
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        streams = PairedStreams(work.original, model, work.ids, Path(scratch))
        streams.advance_original(0, model.kept[0])
        for number, (index, following) in enumerate(pairwise((*model.kept, model.inventory.blocks))):
            if number < len(finished):
                streams.advance_original(index, following)
                with model.block(index) as block:
                    streams.advance_model(block, index)
            else:
                changed_before = step.everywhere or index > number
                yield _refit_block(streams, index, following, changed_before=changed_before)


def _refit_block(streams: PairedStreams, index: int, following: int, *, changed_before: bool) -> CompressedPart:
    """Refit one block, and return its part; `changed_before` tells whether the model differs in it or before it.

    Both streams are advanced: the model's behind the block, the original's to the input of `following`, the next
    remaining block.
    """
    model, name = streams.model, f"{streams.model.inventory.block_prefix}.{index}"
    is_last_before_a_gap = following > index + 1
    with model.block(index) as block:
        if changed_before:
            with streams.original.block(index) as whole:
                targets = stream_behind_attention(streams.original, whole, index, streams.before)
                refit_attention(model, block, index, streams.after, targets, ATTENTION)
        streams.advance_original(index, following)
        if not changed_before and not is_last_before_a_gap:
            streams.advance_model(block, index)
            return CompressedPart(name)
        settings = BEFORE_A_GAP if is_last_before_a_gap else ELSEWHERE
        refit(model, block, index, streams.after, streams.before, settings)
        streams.advance_model(block, index)
        tensors = refitted_tensors(model, block, index, attention=changed_before)
        return CompressedPart(name, tensors=tensors, errors={name: streams.error()})
