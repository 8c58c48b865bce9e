"""Narrower attention: which groups go, and what the output projection must then be.

A group is a key/value head with the query heads that share it. What its query heads read enters the output projection
in neighbouring columns, so that the groups are chosen as hidden units of an MLP are: by what their loss costs once the
others have made up for it.

Promise: the heads that stay compute what they did. Before MLPs follow, so that these are narrowed on what then enters
them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.compression.math.fewer_inputs import Compensation, Moments, rows_of
from workers.compression.math.pruning import prune_groups
from workers.compression.spec.architectures import ARCHITECTURES
from workers.compression.spec.heads import head_matrices, heads_of
from workers.compression.steps.passages import passage_up_to
from workers.compression.steps.streams import PairedStreams
from workers.compression.steps.two_streams import BlockwiseModel

DAMPING = 0.1
"""Of the fit of the output projection: of 0.01, 0.1, 0.3 and 1 what cost least on SmolLM2-135M, with 2 of 3 groups."""


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
    inventory = streams.model.inventory
    attention = ARCHITECTURES[inventory.model_type].attention
    matrices, heads = head_matrices(inventory), heads_of(inventory)
    moments = _moments(streams, block, index, attention.leaving, normed=attention.norm is not None)
    problem = Compensation(moments, block.get_submodule(attention.leaving), compensation, DAMPING)
    found = prune_groups(problem.target, problem.inputs, heads.group_width, key_value_heads)
    groups = found.kept[:: heads.group_width] // heads.group_width
    shared = (groups[:, None] * heads.size + torch.arange(heads.size)).flatten()
    tensors = problem.tensors(attention.leaving, found)
    for name, kept in ((matrices.queries, found.kept), (matrices.keys, shared), (matrices.values, shared)):
        tensors |= rows_of(name, block.get_submodule(name), kept)
    return NarrowedAttention(tensors, found.error, attention.leaving)


def _moments(streams: PairedStreams, block: nn.Module, index: int, leaving: str, *, normed: bool) -> Moments:
    """Of what enters the output projection, and of the error that the stream has behind it; where a norm stands
    between, of the error of what the attention gives out."""

    def passed(model: BlockwiseModel, made: nn.Module, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for hidden in batches:
            seen = passage_up_to(model, made, index, hidden, leaving)
            yield seen.entered, seen.written.float() + (0 if normed else hidden.float())

    with streams.original.block(index) as whole:
        ours, originals = passed(streams.model, block, streams.after), passed(streams.original, whole, streams.before)
        pairs = zip(ours, originals, strict=True)
        return Moments.of((entered, wanted - left) for (entered, left), (_, wanted) in pairs)
