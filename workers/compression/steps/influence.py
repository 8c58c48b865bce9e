"""Choose which blocks to remove: score the effect of each block's removal by one of several criteria.

    for block, scores in removals(model, ids, count=8, criterion="macro_influence"):
        ...                            # the block now counts as removed; the next scores are without it

Promise: scores describe the model as it is, all edits included. The block with the smallest score goes first.
`candidates` limits the search to a shortlist of that many blocks, chosen by one pass of `block_influence`. Use it
for an expensive criterion, or if the model is larger than memory and loading weights is the cost.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from modelpress.spec.criteria import CRITERIA, Criterion
from workers.compression.drawing import evenly_spread
from workers.compression.steps.projections import Refit, refit
from workers.compression.steps.variants import WHOLE, ShrinkingModel, Variants, run_in_batches

INFLUENCE_SEQUENCES, INFLUENCE_LENGTH = 4, 512
"""Sequences of the calibration text, and tokens of each, on which blocks are scored. At most half of the sequences are
used if the text is short."""

SHORTLIST_FRACTION = 0.4
"""The fraction of the blocks, those with the least block influence, that an expensive criterion scores. On SmolLM2-135M
11 of 30 blocks contain all eight that `loss_after_removal` picks from all of them."""

LOGIT_TOKENS = 512
"""The most tokens that pass through the output head at a time."""

TRIAL = Refit(ridge=0.5)
"""Settings of the closed-form refit in `trial_fusion`."""


@dataclass(frozen=True)
class BlockScores:
    """Scores of one round. `values`: the cost of removing each block, by its index in the original model."""

    criterion: Criterion
    values: Mapping[int, float]

    def least(self, count: int = 1) -> tuple[int, ...]:
        """Return the `count` blocks with the lowest scores, the lowest first; ties go to the earlier block."""
        return tuple(sorted(self.values, key=lambda block: (self.values[block], block))[:count])


Scorer = Callable[[Variants, Sequence[int], Collection[int], int], dict[int, float]]
"""A function (variants, blocks, candidates, unchanged) → {block: score}: scores the `candidates` among the `blocks` of
the model. The caller promises that blocks below the index `unchanged` have not changed since the last call. `Variants`
computes without gradients; `math.sensitivity` shows how to have them block by block."""


def next_removals(
    model: ShrinkingModel, ids: Tensor, count: int, criterion: Criterion
) -> Iterator[tuple[int, BlockScores]]:
    """Yield the `count` blocks to remove next, each with the scores it was chosen by; see `removals`.

    Scores are taken on part of the calibration tokens `ids` [sequences, length]. Expensive criteria score a shortlist
    of blocks only. Raises what `removals` raises.
    """
    is_expensive = CRITERIA[criterion].is_expensive
    candidates = max(2, math.ceil(SHORTLIST_FRACTION * model.inventory.blocks)) if is_expensive else None
    return removals(model, influence_text(ids), count, criterion, candidates=candidates)


def influence_text(ids: Tensor) -> Tensor:
    """Return the part of the calibration tokens [sequences, length] on which blocks are scored."""
    return evenly_spread(ids, min(INFLUENCE_SEQUENCES, -(-len(ids) // 2)))[:, :INFLUENCE_LENGTH]


def score(
    model: ShrinkingModel, ids: Tensor, criterion: Criterion = "macro_influence", *, candidates: int | None = None
) -> BlockScores:
    """Return the scores of all blocks of the model, or of a shortlist of `candidates` blocks, on token ids [N, T].

    Raises:
        ValueError: if the criterion is unknown.
    """
    return _score_blocks(Variants(model, ids, disk=0), criterion, model.kept, candidates, unchanged=0)


def removals(
    model: ShrinkingModel,
    ids: Tensor,
    count: int,
    criterion: Criterion = "macro_influence",
    *,
    candidates: int | None = None,
    memory: int = 2**31,
    disk: int = 2**32,
) -> Iterator[tuple[int, BlockScores]]:
    """Yield the block to remove next and the scores it was chosen by, `count` times.

    A block that has been yielded counts as removed. The next scores see whatever else the caller has done to the model
    in the meantime.

    Args:
        ids: token ids [N, T] on which blocks are scored.
        candidates: number of blocks on the shortlist; None scores all.
        memory: bytes of hidden states held in memory at a time.
        disk: bytes of hidden states kept in files for the next round.

    Raises:
        ValueError: if the criterion is unknown or no block would be left.
    """
    if count >= len(model.kept):
        raise ValueError(f"cannot remove {count} of {len(model.kept)} blocks: at least one must remain")
    variants = Variants(model, ids, memory=memory, disk=disk)
    gone: set[int] = set()
    unchanged = 0
    for _ in range(count):
        blocks = [index for index in model.kept if index not in gone]
        scores = _score_blocks(variants, criterion, blocks, candidates, unchanged)
        (block,) = scores.least()
        gone.add(block)
        editions = {index: model.edition(index) for index in blocks}
        yield block, scores
        unchanged = min(index for index in blocks if index == block or model.edition(index) != editions[index])


def _score_blocks(
    variants: Variants, criterion: Criterion, blocks: Sequence[int], candidates: int | None, unchanged: int
) -> BlockScores:
    """Return the scores of `blocks`, or of a shortlist of `candidates` of them."""
    if criterion not in SCORERS:
        raise ValueError(f"unknown criterion {criterion!r}; choose one of {', '.join(SCORERS)}")
    chosen = set(blocks)
    if candidates is not None and candidates < len(blocks):
        quick = BlockScores("block_influence", block_influence(variants, blocks, blocks, 0))
        chosen = set(quick.least(candidates))
    return BlockScores(criterion, SCORERS[criterion](variants, blocks, chosen, unchanged))


def macro_influence(
    variants: Variants, blocks: Sequence[int], candidates: Collection[int], unchanged: int
) -> dict[int, float]:
    """Return, per candidate, 1 − the mean cosine similarity of the final hidden states with and without the block.

    The states are taken before the final norm; the mean is over tokens. The criterion is FuseGPT's (arXiv 2411.14507),
    with the current model as the reference.
    """
    totals = dict.fromkeys(sorted(candidates), 0.0)
    for _, leaving in variants.run(blocks, candidates, unchanged):
        for block in totals:
            totals[block] += _cosine_distance(leaving[WHOLE], leaving[block])
    return _per_token(totals, variants.ids.numel())


def loss_after_removal(
    variants: Variants, blocks: Sequence[int], candidates: Collection[int], unchanged: int
) -> dict[int, float]:
    """Return, per candidate, the rise of the language-modelling loss without the block, in nats per predicted token.

    The criterion is that of SLEB (arXiv 2402.09025).
    """
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
    """Return, per candidate, 1 − the mean cosine similarity of the block's input and output, over tokens.

    The criterion is that of ShortGPT (arXiv 2403.03853).
    """
    totals = dict.fromkeys(sorted(candidates), 0.0)
    model = variants.model
    hidden = model.hidden(variants.ids)
    for index in blocks:
        with model.block(index) as block:
            following = run_in_batches(model, block, index, hidden)
        if index in totals:
            totals[index] = _cosine_distance(hidden, following)
        hidden = following
    return _per_token(totals, variants.ids.numel())


def trial_fusion(
    variants: Variants, blocks: Sequence[int], candidates: Collection[int], unchanged: int
) -> dict[int, float]:
    """Return, per candidate, the macro influence that is left once the block before it has been refitted.

    The block before is refitted in closed form to the removed block's output. The fit is scored on the tokens that it
    was made on, so there should be many times more tokens than the projection has inputs.
    """
    model = variants.model

    def bridge(index: int, entering: Tensor, wanted: Tensor) -> Tensor:
        with model.block(index) as block:
            refit(model, block, index, torch.split(entering, 1), torch.split(wanted, 1), TRIAL)
            return run_in_batches(model, block, index, entering)

    totals = dict.fromkeys(sorted(candidates), 0.0)
    for _, leaving in variants.run(blocks, candidates, bridge=bridge):
        for block in totals:
            totals[block] += _cosine_distance(leaving[WHOLE], leaving[block])
    return _per_token(totals, variants.ids.numel())


SCORERS: Mapping[Criterion, Scorer] = MappingProxyType(
    {
        "macro_influence": macro_influence,
        "block_influence": block_influence,
        "loss_after_removal": loss_after_removal,
        "trial_fusion": trial_fusion,
    }
)
"""The criteria by name; a lower score means that the block is easier to spare."""


def _cosine_distance(before: Tensor, after: Tensor) -> float:
    """Return Σ (1 − cosine similarity) over the tokens of two sets of hidden states [n, T, H]."""
    sums = [
        (1 - functional.cosine_similarity(one.float(), other.float(), dim=-1)).sum()
        for one, other in zip(before, after, strict=True)
    ]
    # Added in float64, and fetched once: each fetch makes the host wait.
    return math.fsum(torch.stack(sums).tolist())


@torch.no_grad()
def _loss(head: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor) -> float:
    """Return the summed negative log-likelihood, in nats, of all tokens `ids` [n, T] but the first of each sequence.

    `hidden` [n, T, H] is the last block's output.
    """
    total = 0.0
    # At most the length of a sequence, because the model may have no positions beyond.
    tokens_at_a_time = min(LOGIT_TOKENS, ids.shape[1] - 1)
    contexts = torch.split(hidden[:, :-1].flatten(0, 1), tokens_at_a_time)
    following = torch.split(ids[:, 1:].flatten(), tokens_at_a_time)
    for states, targets in zip(contexts, following, strict=True):
        logits = head(states.unsqueeze(0)).squeeze(0).float()
        total += functional.cross_entropy(logits, targets.to(logits.device), reduction="sum").item()
    return total


def _per_token(totals: Mapping[int, float], tokens: int) -> dict[int, float]:
    return {block: total / tokens for block, total in totals.items()}
