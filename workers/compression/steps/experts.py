"""Remove experts from every mixture: those that contribute least to its output (REAP, arXiv 2510.13999).

The score of an expert is the mean, over the tokens that the router sends to it, of the norm of its output times the
router's weight. An expert that no token reaches scores 0. The router loses the entries of the experts that go, so that
it spreads its weight over those that stay.

Promise: every mixture keeps the same number of experts, and in each group of a grouped router the same number. Scores
are those of the model as the earlier steps have left it. One block's weights are in memory.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from modelpress.spec.architectures import architecture_named
from modelpress.spec.inventory import ExpertCounts
from modelpress.spec.steps import KeepExperts
from workers.compression.models.protocols import BlockwiseModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.two_streams import StoredStates, embedded
from workers.compression.steps.work import Work


@dataclass(frozen=True)
class Contribution:
    """The contribution of each expert of a mixture: its `scores` [experts], and the `tokens` [experts] they got."""

    scores: Tensor
    tokens: Tensor

    def kept(self, count: int, groups: int) -> tuple[int, ...]:
        """Return the `count` experts with the highest scores, equally many of each of the `groups`, ascending."""
        by_group = self.scores.view(groups, -1)
        best = by_group.topk(count // groups, dim=1).indices + torch.arange(groups)[:, None] * by_group.shape[1]
        return tuple(sorted(best.flatten().tolist()))

    def unreached(self) -> tuple[int, ...]:
        """Return the experts that no token reached."""
        return tuple((self.tokens == 0).nonzero().flatten().tolist())


@torch.no_grad()
def run(step: KeepExperts, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each remaining block, after the `finished` ones; that of one without a mixture is empty."""
    model = work.model
    counts = cast("ExpertCounts", model.inventory.experts)
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        states = StoredStates(Path(scratch) / "states", embedded(model, work.ids), model.device)
        for number, index in enumerate(model.kept):
            name = f"{model.inventory.block_prefix}.{index}"
            with model.block(index) as block:
                if number >= len(finished) and not counts.parameters[index]:
                    yield CompressedPart(name)
                elif number >= len(finished):
                    found = contribution(model, block, index, states, counts.total)
                    kept = found.kept(step.count, counts.groups)
                    yield CompressedPart(name, experts={index: kept}, unreached=found.unreached())
                states.pass_through(model, block, index)


def contribution(model: BlockwiseModel, block: nn.Module, index: int, states: StoredStates, total: int) -> Contribution:
    """Return what the `total` experts of a block's mixture contribute for the block's input `states`."""
    module = block.get_submodule(_module(model))
    sums, tokens = torch.zeros(total, dtype=torch.float64), torch.zeros(total, dtype=torch.long)
    for hidden in states:
        for entering, chosen, weights in _calls(model, block, index, hidden, module):
            alone = torch.ones_like(weights[:, :1])
            for slot in range(chosen.shape[1]):
                experts = chosen[:, slot]
                norms = module(entering, experts[:, None], alone).flatten(0, -2).float().norm(dim=-1)
                sums.index_add_(0, experts.cpu(), (weights[:, slot].float() * norms).double().cpu())
                tokens.index_add_(0, experts.cpu(), torch.ones_like(experts.cpu()))
    return Contribution(sums / tokens.clamp_min(1), tokens)


def _calls(
    model: BlockwiseModel, block: nn.Module, index: int, hidden: Tensor, module: nn.Module
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the arguments of every call of the experts' module: states, chosen experts and their weights."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        entering, chosen, weights = (*arguments, *named.values())[:3]
        calls.append((entering.reshape(-1, entering.shape[-1]), chosen, weights))

    with module.register_forward_pre_hook(watch, with_kwargs=True):
        model.run(block, index, hidden)
    return calls


def _module(model: BlockwiseModel) -> str:
    """Return the name, inside a block, of the module of the experts."""
    experts = architecture_named(model.inventory.model_type).experts
    return cast("str", experts and experts.module)
