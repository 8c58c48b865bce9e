"""Narrower attention: which groups go, and what the output projection must then be.

A group is a key/value head with the query heads that share it. What its query heads read enters the output projection
in neighbouring columns, so that the groups are chosen as hidden units of an MLP are: by what their loss costs once the
others have made up for it.

Promise: the heads that stay compute what they did. Before MLPs follow, so that these are narrowed on what then enters
them.
"""

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.compression.accounting.heads import attention_of, heads_of
from workers.compression.factors.two_streams import BlockwiseModel
from workers.compression.resizing.fewer_inputs import Compensation, Moments, rows_of
from workers.compression.resizing.pruning import prune_groups
from workers.compression.resizing.streams import PairedStreams

DAMPING = 0.1
"""Of the fit of the output projection: of 0.01, 0.1, 0.3 and 1 what cost least on SmolLM2-135M, with 2 of 3 groups."""


class _Attended(Exception):
    """Ends a block's forward behind its attention."""


@dataclass(frozen=True)
class NarrowedAttention:
    """The attention's `tensors` by their names inside the block; the `error` of its output, relative, and the `site`
    inside the block that makes it."""

    tensors: dict[str, Tensor]
    error: float
    site: str


def narrow_attention(
    streams: PairedStreams, block: nn.Module, index: int, key_value_heads: int, compensation: float
) -> NarrowedAttention:
    """What leaves the block so many of its groups, fitted on what enters it in the narrowed model.

    `streams` stand before the block and stay there; `compensation` is that of `width.narrow`. Raises HeadsDoNotFit
    where attention cannot be narrowed, ValueError where there are not more groups than that.
    """
    attention, heads = attention_of(streams.model.inventory), heads_of(streams.model.inventory)
    moments = _moments(streams, block, index, attention.leaving, normed=attention.norm is not None)
    problem = Compensation(moments, block.get_submodule(attention.leaving), compensation, DAMPING)
    found = prune_groups(problem.target, problem.inputs, heads.group_width, key_value_heads)
    groups = found.kept[:: heads.group_width] // heads.group_width
    shared = (groups[:, None] * heads.size + torch.arange(heads.size)).flatten()
    tensors = problem.tensors(attention.leaving, found)
    for name, kept in ((attention.queries, found.kept), (attention.keys, shared), (attention.values, shared)):
        tensors |= rows_of(name, block.get_submodule(name), kept)
    return NarrowedAttention(tensors, found.error, attention.leaving)


def _moments(streams: PairedStreams, block: nn.Module, index: int, leaving: str, *, normed: bool) -> Moments:
    """Of what enters the output projection, and of the error that the stream has behind it; where a norm stands
    between, of the error of what the attention gives out."""
    ours = (_pass(streams.model, block, index, hidden, leaving) for hidden in streams.after)
    with streams.original.block(index) as whole:
        originals = (_pass(streams.original, whole, index, hidden, leaving) for hidden in streams.before)
        return Moments.of(
            (each.entered, wanted.written - each.written if normed else wanted.stream - each.stream)
            for each, wanted in zip(ours, originals, strict=True)
        )


@dataclass(frozen=True)
class _Passage:
    """What a batch leaves in a block's attention: what `entered` the output projection, what it has `written`, and the
    `stream` with that added."""

    entered: Tensor
    written: Tensor
    stream: Tensor


def _pass(model: BlockwiseModel, block: nn.Module, index: int, hidden: Tensor, leaving: str) -> _Passage:
    seen: list[tuple[Tensor, Tensor]] = []

    def stop(_: nn.Module, entered: tuple[Tensor, ...], left: Tensor) -> None:
        seen.append((entered[0], left))
        raise _Attended

    with block.get_submodule(leaving).register_forward_hook(stop), suppress(_Attended):
        model.run(block, index, hidden)
    entered, left = seen[0]
    written = left.float()
    return _Passage(entered, written, hidden.float() + written)
