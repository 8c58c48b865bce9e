"""Which block a model can spare: what each one's removal does, by one of several criteria.

    for block, scores in removals(model, ids, count=8, criterion="macro_influence"):
        ...                            # the block is gone from here on; the next scores are those of what remains

Promise: a score is that of the model as it stands, all its edits included, and the smaller, the sooner the block goes.
`candidates` restricts the search to that many blocks, which one pass of `block_influence` has picked: for a criterion
that is dear, or where the model is larger than memory and loading is the cost.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from workers.compression.steps.projections import Refit, refit
from workers.compression.steps.variants import WHOLE, ShrinkingModel, Variants, run_in_batches

INFLUENCE_SEQUENCES, INFLUENCE_LENGTH = 4, 512
"""How much of the calibration text shows which block can go; of a short text, half of its sequences."""

SHORTLISTED = 0.4
"""The fraction of the blocks, those of the least block influence, that are asked where asking is dear. On SmolLM2-135M
11 of 30 hold each of the eight blocks that the loss takes from among all."""

DEAR = ("loss_after_removal", "trial_fusion")
"""Criteria that ask a shortlist instead of every block."""

LOGIT_TOKENS = 512
"""Tokens that pass through the head at a time, at most."""

TRIAL = Refit(ridge=0.5)
"""The closed form by which `trial_fusion` judges."""


@dataclass(frozen=True)
class BlockScores:
    """`values`: what leaving out each block costs, by its index in the original model."""

    criterion: str
    values: Mapping[int, float]

    def least(self, count: int = 1) -> tuple[int, ...]:
        """The blocks that cost least, the cheapest first; of equals the first of the model."""
        return tuple(sorted(self.values, key=lambda block: (self.values[block], block))[:count])


Criterion = Callable[[Variants, Sequence[int], Collection[int], int], dict[int, float]]
"""From variants, the blocks of the model, those to be scored, and the index below which nothing has changed since the
last call: the score of each."""


def next_removals(model: ShrinkingModel, ids: Tensor, count: int, criterion: str) -> Iterator[tuple[int, BlockScores]]:
    """Yield the `count` blocks to go next, and their scores: see `removals`.

    Part of the calibration tokens `ids` [sequences, length] judges, and, where the criterion is dear, a shortlist of
    blocks is judged.
    """
    candidates = max(2, math.ceil(SHORTLISTED * model.inventory.blocks)) if criterion in DEAR else None
    return removals(model, influence_text(ids), count, criterion, candidates=candidates)


def influence_text(ids: Tensor) -> Tensor:
    """Return the part of the calibration tokens [sequences, length] that shows which block can go."""
    return evenly_spread(ids, min(INFLUENCE_SEQUENCES, -(-len(ids) // 2)))[:, :INFLUENCE_LENGTH]


def evenly_spread(ids: Tensor, count: int) -> Tensor:
    """Return at most `count` of the sequences [N, T], the first and the last among them where there are several."""
    return ids[torch.linspace(0, len(ids) - 1, min(count, len(ids))).long()]


def score(
    model: ShrinkingModel, ids: Tensor, criterion: str = "macro_influence", *, candidates: int | None = None
) -> BlockScores:
    """The scores of all blocks of the model, or of as many `candidates`, over token ids [N, T].

    Raises ValueError for an unknown criterion.
    """
    return _scored(Variants(model, ids, disk=0), criterion, model.kept, candidates, unchanged=0)


def removals(
    model: ShrinkingModel,
    ids: Tensor,
    count: int,
    criterion: str = "macro_influence",
    *,
    candidates: int | None = None,
    memory: int = 2**31,
    disk: int = 2**32,
) -> Iterator[tuple[int, BlockScores]]:
    """Yields the block to go next and the scores it was chosen by, `count` times.

    `memory` and `disk` bound, in bytes, the streams that are held at a time and those kept for the next round. What has
    been yielded counts as removed; whatever else the caller does to the model meanwhile is seen by the next scores.
    Raises ValueError for an unknown criterion, and where no block would be left.
    """
    if count >= len(model.kept):
        raise ValueError(f"{count} of {len(model.kept)} blocks cannot be removed: one must be left")
    variants = Variants(model, ids, memory=memory, disk=disk)
    gone: set[int] = set()
    unchanged = 0
    for _ in range(count):
        blocks = [index for index in model.kept if index not in gone]
        scores = _scored(variants, criterion, blocks, candidates, unchanged)
        (block,) = scores.least()
        gone.add(block)
        editions = {index: model.edition(index) for index in blocks}
        yield block, scores
        unchanged = min(index for index in blocks if index == block or model.edition(index) != editions[index])


def _scored(
    variants: Variants, criterion: str, blocks: Sequence[int], candidates: int | None, unchanged: int
) -> BlockScores:
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; known are {', '.join(CRITERIA)}")
    chosen = set(blocks)
    if candidates is not None and candidates < len(blocks):
        quick = BlockScores("block_influence", block_influence(variants, blocks, blocks, 0))
        chosen = set(quick.least(candidates))
    return BlockScores(criterion, CRITERIA[criterion](variants, blocks, chosen, unchanged))


def macro_influence(
    variants: Variants, blocks: Sequence[int], candidates: Collection[int], unchanged: int
) -> dict[int, float]:
    """1 − the mean cosine between the final hidden states, before the final norm, with and without the block.

    FuseGPT (arXiv 2411.14507), with the current model as the reference.
    """
    totals = dict.fromkeys(sorted(candidates), 0.0)
    for _, leaving in variants.run(blocks, candidates, unchanged):
        for block in totals:
            totals[block] += _turning(leaving[WHOLE], leaving[block])
    return _per_token(totals, variants.ids.numel())


def loss_after_removal(
    variants: Variants, blocks: Sequence[int], candidates: Collection[int], unchanged: int
) -> dict[int, float]:
    """By how much the language-modelling loss rises without the block, in nats per predicted token: the order of SLEB
    (arXiv 2402.09025)."""
    totals = dict.fromkeys(sorted(candidates), 0.0)
    for ids, leaving in variants.run(blocks, candidates, unchanged):
        with variants.model.head() as head:
            whole = _loss(head, leaving[WHOLE], ids)
            for block in totals:
                totals[block] += _loss(head, leaving[block], ids) - whole
    return _per_token(totals, variants.ids[:, 1:].numel())


@torch.no_grad()
def block_influence(
    variants: Variants, blocks: Sequence[int], candidates: Collection[int], unchanged: int
) -> dict[int, float]:
    """1 − the mean cosine between what enters and what leaves the block: ShortGPT (arXiv 2403.03853)."""
    totals = dict.fromkeys(sorted(candidates), 0.0)
    model = variants.model
    hidden = model.hidden(variants.ids)
    for index in blocks:
        with model.block(index) as block:
            following = run_in_batches(model, block, index, hidden)
        if index in totals:
            totals[index] = _turning(hidden, following)
        hidden = following
    return _per_token(totals, variants.ids.numel())


def trial_fusion(
    variants: Variants, blocks: Sequence[int], candidates: Collection[int], unchanged: int
) -> dict[int, float]:
    """The macro influence that is left once the block before has been refitted to what the removed one gave.

    The fit sees the tokens that it is judged by, so they should be many times its inputs.
    """
    model = variants.model

    def bridge(index: int, entering: Tensor, wanted: Tensor) -> Tensor:
        with model.block(index) as block:
            refit(model, block, index, torch.split(entering, 1), torch.split(wanted, 1), TRIAL)
            return run_in_batches(model, block, index, entering)

    totals = dict.fromkeys(sorted(candidates), 0.0)
    for _, leaving in variants.run(blocks, candidates, bridge=bridge):
        for block in totals:
            totals[block] += _turning(leaving[WHOLE], leaving[block])
    return _per_token(totals, variants.ids.numel())


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "macro_influence": macro_influence,
        "block_influence": block_influence,
        "loss_after_removal": loss_after_removal,
        "trial_fusion": trial_fusion,
    }
)


def _turning(before: Tensor, after: Tensor) -> float:
    """Σ (1 − cos) over the tokens of two streams [n, T, H]."""
    total = 0.0
    for one, other in zip(before, after, strict=True):
        total += (1 - functional.cosine_similarity(one.float(), other.float(), dim=-1)).sum().item()
    return total


@torch.no_grad()
def _loss(head: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor) -> float:
    """Σ of the negative log-likelihood of the tokens [n, T] after the first of each sequence."""
    total = 0.0
    # No longer than a sequence, which the model has positions for.
    tokens_at_a_time = min(LOGIT_TOKENS, ids.shape[1] - 1)
    contexts = torch.split(hidden[:, :-1].flatten(0, 1), tokens_at_a_time)
    following = torch.split(ids[:, 1:].flatten(), tokens_at_a_time)
    for states, targets in zip(contexts, following, strict=True):
        logits = head(states.unsqueeze(0)).squeeze(0).float()
        total += functional.cross_entropy(logits, targets.to(logits.device), reduction="sum").item()
    return total


def _per_token(totals: Mapping[int, float], tokens: int) -> dict[int, float]:
    return {block: total / tokens for block, total in totals.items()}
