"""Remove attention heads in groups and refit the output projection.

A group is a key/value head with the query heads that share it. The outputs of a group enter the output projection in
neighbouring columns. Groups are therefore chosen as hidden units of an MLP are: by the error that is left once the
remaining columns are refitted.

Promise: the remaining heads compute what they did before. Attention is narrowed before the MLP of the same block, which
is then fitted to its changed input.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelpress.spec.architectures import architecture_named
from modelpress.spec.heads import head_matrices, heads_of
from workers.compression.math.fewer_inputs import Compensation, Moments, rows_of
from workers.compression.math.pruning import prune_groups
from workers.compression.models.protocols import BlockwiseModel
from workers.compression.steps.passages import passage_up_to
from workers.compression.steps.streams import PairedStreams

DAMPING = 0.1
"""Ridge of the output projection's fit. Of 0.01, 0.1, 0.3 and 1 it cost least on SmolLM2-135M with 2 of 3 groups."""


@dataclass(frozen=True)
class NarrowedAttention:
    """The result of removing key/value heads from one block.

    Attributes:
        tensors: the new tensors of the attention by their names inside the block.
        error: relative error of the output projection's output.
        site: name of the output projection inside the block.
    """

    tensors: dict[str, Tensor]
    error: float
    site: str


def narrow_attention(
    streams: PairedStreams, block: nn.Module, index: int, key_value_heads: int, compensation: float
) -> NarrowedAttention:
    """Return the tensors of a block's attention with only `key_value_heads` key/value heads and their query heads.

    The output projection is fitted to the block's input in the narrowed model.

    Args:
        streams: hidden states before the block; they are not advanced.
        block: the block in the narrowed model, still with all its heads.
        index: the block's index in the original.
        key_value_heads: number of key/value heads to keep.
        compensation: share of the error of earlier blocks that the fit makes up for, 0 to 1.

    Raises:
        HeadsDoNotFit: if the architecture's config cannot state fewer heads.
        ValueError: if the block has no more than `key_value_heads` groups.
    """
    inventory = streams.model.inventory
    attention = architecture_named(inventory.model_type).attention
    matrices, heads = head_matrices(inventory), heads_of(inventory)
    moments = _moments(streams, block, index, attention.leaving, adds=attention.adds)
    problem = Compensation(moments, block.get_submodule(attention.leaving), compensation, DAMPING)
    found = prune_groups(problem.target, problem.inputs, heads.group_width, key_value_heads)
    groups = found.kept[:: heads.group_width] // heads.group_width
    shared = (groups[:, None] * heads.size + torch.arange(heads.size, device=groups.device)).flatten()
    tensors = problem.tensors(attention.leaving, found)
    for name, kept in ((matrices.queries, found.kept), (matrices.keys, shared), (matrices.values, shared)):
        tensors |= rows_of(name, block.get_submodule(name), kept)
    return NarrowedAttention(tensors, found.error, attention.leaving)


def _moments(streams: PairedStreams, block: nn.Module, index: int, leaving: str, *, adds: bool) -> Moments:
    """Return the moments of the output projection's inputs and of the error behind it.

    The error is that of the residual stream if the projection `adds` to it as it is, or else that of the projection's
    output.
    """

    def passed(model: BlockwiseModel, made: nn.Module, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for hidden in batches:
            seen = passage_up_to(model, made, index, hidden, leaving)
            yield seen.entered, seen.written.float() + (hidden.float() if adds else 0)

    with streams.original.block(index) as whole:
        ours, originals = passed(streams.model, block, streams.after), passed(streams.original, whole, streams.before)
        pairs = zip(ours, originals, strict=True)
        return Moments.of((entered, wanted - left) for (entered, left), (_, wanted) in pairs)
