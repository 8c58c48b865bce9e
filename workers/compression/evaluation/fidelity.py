"""What models predict, token by token, on the same text: how well, and how far from the model they were made of.

    perplexity(model, windows)                                    # token ids [W, T]
    _, result, baseline = compare(original, [compressed, dropped], windows)
    result.perplexity, result.divergence, result.agreement

Promise: every model streams block by block, and logits are formed a few tokens at a time, so that models larger than
memory are compared too. At its peak one block, or the heads of all the models, are in memory beside HIDDEN_BYTES for
each model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.compression.models.streamed import StreamedModel

HIDDEN_BYTES = 64 * 2**20
"""Hidden states that are kept of each model at a time; a longer text makes several passes over the blocks."""

LOGIT_BYTES = 64 * 2**20
"""Logits that are formed at a time, in fp32, over all models."""


@dataclass(frozen=True)
class Fidelity:
    """What a model predicts for `tokens` tokens, beside what the original predicts for them.

    `perplexity` is the model's own: exp of the mean negative log-likelihood. `divergence` is the mean of KL(p ‖ q) over
    the predicted tokens, in nats, p the original's distribution and q the model's. `agreement` is the share of tokens
    for which both hold the same one to be the most likely. Computing in bfloat16 alone, in place of float32, gave a
    divergence of 0.001 and an agreement of 0.97 on a model of 135 million parameters: what is closer is rounding.
    """

    perplexity: float
    divergence: float
    agreement: float
    tokens: int


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of `tokens` predicted tokens."""

    value: float
    tokens: int


def perplexity(model: StreamedModel, windows: Tensor, *, batch: int = 4) -> Perplexity:
    """That of one model alone; see `compare`."""
    (found,) = compare(model, (), windows, batch=batch)
    return Perplexity(found.perplexity, found.tokens)


@torch.no_grad()
def compare(
    original: StreamedModel, others: Sequence[StreamedModel], windows: Tensor, *, batch: int = 4
) -> tuple[Fidelity, ...]:
    """The original and then each of the others over token ids [W, T], each window on its own: its first token is
    context only. The original diverges from itself by nothing.

    `batch` windows pass through a block at a time. Raises ValueError for windows of fewer than two tokens, and for
    models that do not predict the same vocabulary.
    """
    models = (original, *others)
    count, length = windows.shape
    if count < 1 or length < 2:
        raise ValueError(f"predictions need windows of at least two tokens; these are {count} of {length}")
    vocabularies = [model.inventory.vocab_size for model in models]
    if len(set(vocabularies)) > 1:
        raise ValueError(f"models of different vocabularies cannot be compared: {vocabularies}")
    widest = max(model.inventory.hidden_size * model.dtype.itemsize for model in models)
    kept = max(1, HIDDEN_BYTES // (length * widest))
    totals = torch.zeros(len(models), 3, dtype=torch.float64)
    for group in torch.split(windows, kept):
        totals += _sums(models, group, batch)
    tokens = count * (length - 1)
    return tuple(_fidelity(sums, tokens) for sums in (totals / tokens).tolist())


def final_states(model: StreamedModel, windows: Tensor, *, batch: int = 4) -> list[Tensor]:
    """What leaves the last block for token ids [W, T], `batch` windows to a tensor [b, T, H]; all are in memory."""
    with model.embedder() as embed:
        states = [embed(some) for some in torch.split(windows, batch)]
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            for number, hidden in enumerate(states):
                states[number] = model.run(block, index, hidden)
    return states


def _fidelity(means: Sequence[float], tokens: int) -> Fidelity:
    """Rounding may leave a divergence of nothing just below it."""
    likelihood, divergence, agreement = means
    try:
        perplexity = math.exp(likelihood)
    except OverflowError:
        perplexity = math.inf
    return Fidelity(perplexity, max(divergence, 0.0), agreement, tokens)


def _sums(models: Sequence[StreamedModel], windows: Tensor, batch: int) -> Tensor:
    """[models, 3]: negative log-likelihood, divergence and agreement, each summed over the predicted tokens."""
    states = [final_states(model, windows, batch=batch) for model in models]
    totals = torch.zeros(len(models), 3, dtype=torch.float64)
    with ExitStack() as held:
        heads = [held.enter_context(model.head()) for model in models]
        for number, ids in enumerate(torch.split(windows, batch)):
            leaving = [states[index][number] for index in range(len(models))]
            for predictions, targets in _predictions(models, heads, leaving, ids):
                totals += _compared(predictions, targets)
    return totals


def _predictions(
    models: Sequence[StreamedModel], heads: Sequence[Callable[[Tensor], Tensor]], leaving: Sequence[Tensor], ids: Tensor
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Log-probabilities [b, t, V] of every model for as many tokens at a time as LOGIT_BYTES hold, and what followed,
    [b, t]."""
    per_token = 4 * ids.shape[0] * models[0].inventory.vocab_size * len(models)
    chunk = max(1, LOGIT_BYTES // per_token)
    following = ids[:, 1:].to(models[0].device)
    for start in range(0, following.shape[1], chunk):
        targets = following[:, start : start + chunk]
        stop = start + targets.shape[1]
        yield (
            [
                functional.log_softmax(head(hidden[:, start:stop]).float().to(targets.device), dim=-1)
                for head, hidden in zip(heads, leaving, strict=True)
            ],
            targets,
        )


def _compared(predictions: Sequence[Tensor], targets: Tensor) -> Tensor:
    """The sums of `_sums` for log-probabilities [b, t, V] of each model, the original's first."""
    original, *others = predictions
    sums = [(_likelihood(original, targets), 0.0, float(targets.numel()))]
    if others:
        favourites = original.argmax(-1)
    for found in others:
        divergences = functional.kl_div(found, original, reduction="none", log_target=True).sum(-1)
        agreement = (found.argmax(-1) == favourites).sum().item()
        sums.append((_likelihood(found, targets), divergences.double().sum().item(), agreement))
    return torch.tensor(sums, dtype=torch.float64)


def _likelihood(found: Tensor, targets: Tensor) -> float:
    """Minus the sum of the log-probabilities [b, t, V] that `found` gives to `targets` [b, t]."""
    return -found.gather(-1, targets.unsqueeze(-1)).double().sum().item()
