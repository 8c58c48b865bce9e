"""Narrow MLPs by removing hidden units and refitting the down projection; on request remove attention heads, too.

Hidden units are chosen by `math.pruning`, groups of attention heads by `attention_groups`. All blocks keep the same
numbers of both, so the result has the original's architecture.

Promise: blocks are narrowed in order. Each is fitted, on its input in the narrowed model, to the original's hidden
states on the same text. Two blocks' weights are in memory; hidden states are kept in a temporary directory. The same
inputs give the same bytes, resumed or not.
"""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from modelpress.spec.architectures import architecture_named
from modelpress.spec.steps import Narrow
from workers.compression.math.fewer_inputs import Compensation, Moments, rows_of
from workers.compression.math.pruning import prune
from workers.compression.models.edited import put
from workers.compression.parts import CompressedPart
from workers.compression.steps.attention_groups import narrow_attention
from workers.compression.steps.passages import passage
from workers.compression.steps.projections import adds_to_residual_stream
from workers.compression.steps.streams import PairedStreams
from workers.compression.steps.work import Work

DAMPING = 1.0
"""Ridge of the down projection's fit. Of 0.1, 0.3 and 1, this one costs least on text of another kind than the
calibration's, and hardly anything on the same kind."""

COMPENSATION = 0.5
"""Share of the difference between the two models' hidden states that the projections are fitted to undo, 0 to 1."""


@torch.no_grad()
def run(step: Narrow, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each remaining block, after the `finished` ones.

    Raises:
        ValueError: if a block has no more hidden units or key/value heads than the step keeps.
        HeadsDoNotFit: if the architecture's config cannot state fewer heads.
    """
    model, original = work.model, work.original
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        streams = PairedStreams(original, model, work.ids, Path(scratch))
        streams.advance_original(0, model.kept[0])
        for number, (index, following) in enumerate(pairwise((*model.kept, original.inventory.blocks))):
            if number < len(finished):
                streams.advance_original(index, following)
                part = finished[number]
            else:
                part = _narrow_block(streams, index, following, step)
                yield part
            with model.block(index) as block:
                for name, tensor in part.tensors.items():
                    put(block, name.removeprefix(f"{part.name}."), tensor)
                streams.advance_model(block, index)


def _narrow_block(streams: PairedStreams, index: int, following: int, step: Narrow) -> CompressedPart:
    """Return the part with the block's narrowed tensors, and advance the original's stream.

    Both streams are before the block. The original's moves on to the input of `following`, the next remaining block.
    """
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    with streams.model.block(index) as block:
        if step.key_value_heads is not None:
            attention = narrow_attention(streams, block, index, step.key_value_heads, COMPENSATION)
            tensors, errors = dict(attention.tensors), {attention.site: attention.error}
            for name, tensor in tensors.items():
                put(block, name, tensor)
        if step.intermediate_size is None:
            streams.advance_original(index, following)
        else:
            narrowed, error = _narrow_mlp(streams, block, index, following, step.intermediate_size)
            tensors |= narrowed
            errors |= error
    whole = f"{streams.model.inventory.block_prefix}.{index}"
    return CompressedPart(
        whole,
        tensors={f"{whole}.{name}": tensor for name, tensor in tensors.items()},
        errors={f"{whole}.{name}": error for name, error in errors.items()},
    )


def _narrow_mlp(
    streams: PairedStreams, block: nn.Module, index: int, following: int, size: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors of the MLP with `size` hidden units and the relative error, both by names in the block.

    The original's stream moves on to the input of `following`, the next remaining block.
    """
    mlp = architecture_named(streams.model.inventory.model_type).mlp
    moments = _observe(streams, block, index, following, mlp.leaving)
    problem = Compensation(moments, block.get_submodule(mlp.leaving), COMPENSATION, DAMPING)
    found = prune(problem.target, problem.inputs, size)
    tensors = problem.tensors(mlp.leaving, found)
    units = len(problem.inputs)
    rows = torch.cat([found.kept + part * units for part in range(mlp.stacked)])
    for name in mlp.entering:
        tensors |= rows_of(name, block.get_submodule(name), rows)
    return tensors, {mlp.leaving: found.error}


def _observe(streams: PairedStreams, block: nn.Module, index: int, following: int, leaving: str) -> Moments:
    """Return the moments of the down projection's inputs and of the error behind it, while the block is still wide.

    If the MLP adds straight to the residual stream, the error is that of the stream: it includes the errors of all
    earlier blocks and of the removed blocks that follow. If a norm stands between, it is the error of the MLP's output.
    The original's stream moves on to the input of `following`, the next remaining block.
    """
    found = (passage(streams.model, block, index, hidden, leaving) for hidden in streams.after)
    if adds_to_residual_stream(streams.model, block, index, streams.after[0]):
        streams.advance_original(index, following)
        targets = (hidden.float() for hidden in streams.before)
        return Moments.of(
            (seen.entered, wanted - output) for (seen, output), wanted in zip(found, targets, strict=True)
        )
    with streams.original.block(index) as whole:
        originals = (passage(streams.original, whole, index, hidden, leaving) for hidden in streams.before)
        moments = Moments.of(
            (seen.entered, wanted.written.float() - seen.written)
            for (seen, _), (wanted, _) in zip(found, originals, strict=True)
        )
    streams.advance_original(index, following)
    return moments
