"""Perplexity of models on the same text, and how far their predictions are from the original's.

    perplexity(model, windows)                                    # token ids [W, T]
    _, result, baseline = compare(original, [compressed, dropped], windows)
    result.perplexity, result.divergence, result.agreement

Promise: every model streams block by block and logits are formed a few tokens at a time, so models larger than memory
can be compared. At its peak, one block or the heads of all models are in memory, plus the `Room` of their device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.compression.models.streamed import StreamedModel


@dataclass(frozen=True)
class Room:
    """Memory that a comparison takes beside the weights.

    Attributes:
        hidden: bytes of hidden states per model at a time; a longer text takes several passes over the blocks.
        logits: bytes of fp32 logits that are formed at a time, over all models.
    """

    hidden: int
    logits: int


FIGURES = 3
"""Sums that are kept of each model: negative log-likelihood, divergence and agreement, in this order."""

ON_CPU, ON_CARD = Room(64 * 2**20, 64 * 2**20), Room(2**30, 2**29)
"""A card's room is larger: it waits longer for the blocks of another pass, and for the start of a small operation."""


@dataclass(frozen=True)
class Fidelity:
    """A model's predictions of `tokens` tokens, compared with the original's.

    `perplexity` is exp of the model's mean negative log-likelihood. `divergence` is the mean of KL(p ‖ q) in nats per
    token, with p the original's distribution and q the model's. `agreement` is the fraction of tokens, 0 to 1, for
    which both rank the same token first. For scale: computing a model of 135 million parameters in bfloat16 instead of
    float32 gave a divergence of 0.001 and an agreement of 0.97, so smaller differences are rounding.
    """

    perplexity: float
    divergence: float
    agreement: float
    tokens: int


@dataclass(frozen=True)
class Perplexity:
    """Perplexity `value`: exp of the mean negative log-likelihood of `tokens` predicted tokens."""

    value: float
    tokens: int


def perplexity(model: StreamedModel, windows: Tensor, *, batch: int = 4) -> Perplexity:
    """Return the perplexity of one model on token ids [W, T], `batch` windows at a time; see `compare`."""
    (found,) = compare(model, (), windows, batch=batch)
    return Perplexity(found.perplexity, found.tokens)


@torch.no_grad()
def compare(
    original: StreamedModel, others: Sequence[StreamedModel], windows: Tensor, *, batch: int = 4
) -> tuple[Fidelity, ...]:
    """Return the fidelity of the original and then of each other model on token ids [W, T].

    Windows are independent: the first token of each is context only. The original's own divergence is 0. `batch`
    windows pass through a block at a time. Raises ValueError for windows of fewer than two tokens, and for models of
    different vocabulary sizes.
    """
    models = (original, *others)
    count, length = windows.shape
    if count < 1 or length < 2:
        raise ValueError(f"perplexity needs windows of at least two tokens; got {count} windows of {length}")
    vocabularies = [model.inventory.vocab_size for model in models]
    if len(set(vocabularies)) > 1:
        raise ValueError(f"models of different vocabularies cannot be compared; their sizes are {vocabularies}")
    widest = max(model.inventory.hidden_size * model.dtype.itemsize for model in models)
    kept = max(1, _room(original).hidden // (length * widest))
    totals = torch.zeros(len(models), FIGURES, dtype=torch.float64, device=original.device)
    for group in torch.split(windows, kept):
        totals += _sums(models, group, batch)
    tokens = count * (length - 1)
    return tuple(_fidelity(sums, tokens) for sums in (totals / tokens).tolist())


def _room(model: StreamedModel) -> Room:
    return ON_CPU if model.device.type == "cpu" else ON_CARD


def final_states(model: StreamedModel, windows: Tensor, *, batch: int = 4) -> list[Tensor]:
    """Return the last block's output for token ids [W, T], as a list of tensors [batch, T, H], all in memory."""
    with model.embedder() as embed:
        states = [embed(some) for some in torch.split(windows, batch)]
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            for number, hidden in enumerate(states):
                states[number] = model.run(block, index, hidden)
    return states


def _fidelity(means: Sequence[float], tokens: int) -> Fidelity:
    """Return the fidelity for the means of the `FIGURES`; clamp a divergence that rounding made negative."""
    likelihood, divergence, agreement = means
    try:
        perplexity = math.exp(likelihood)
    except OverflowError:
        perplexity = math.inf
    return Fidelity(perplexity, max(divergence, 0.0), agreement, tokens)


def _sums(models: Sequence[StreamedModel], windows: Tensor, batch: int) -> Tensor:
    """Return [models, FIGURES], each summed over the predicted tokens."""
    states = [final_states(model, windows, batch=batch) for model in models]
    totals = torch.zeros(len(models), FIGURES, dtype=torch.float64, device=models[0].device)
    with ExitStack() as held:
        heads = [held.enter_context(model.head()) for model in models]
        for number, ids in enumerate(torch.split(windows, batch)):
            leaving = [states[index][number] for index in range(len(models))]
            for predictions, targets in _predictions(models, heads, leaving, ids):
                totals += _compare_predictions(predictions, targets)
    return totals


def _predictions(
    models: Sequence[StreamedModel], heads: Sequence[Callable[[Tensor], Tensor]], leaving: Sequence[Tensor], ids: Tensor
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield every model's log-probabilities [b, t, V] and the targets [b, t], as many tokens as there is room for at a
    time."""
    per_token = 4 * ids.shape[0] * models[0].inventory.vocab_size * len(models)
    chunk = max(1, _room(models[0]).logits // per_token)
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


def _compare_predictions(predictions: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Return [models, FIGURES], summed, for the log-probabilities [b, t, V] of each model, the original first."""
    original, *others = predictions
    agreeing = torch.full_like(targets, 1, dtype=torch.float64).sum()
    sums = [_negative_log_likelihood(original, targets), torch.zeros_like(agreeing), agreeing]
    if others:
        favourites = original.argmax(-1)
    for found in others:
        divergences = functional.kl_div(found, original, reduction="none", log_target=True).sum(-1)
        agreeing = (found.argmax(-1) == favourites).double().sum()
        sums += [_negative_log_likelihood(found, targets), divergences.double().sum(), agreeing]
    # Stacked on the device: the host waits for none of them.
    return torch.stack(sums).view(len(predictions), FIGURES)


def _negative_log_likelihood(found: Tensor, targets: Tensor) -> Tensor:
    """Return the summed negative log-likelihood of `targets` [b, t] under log-probabilities [b, t, V], a number."""
    return -found.gather(-1, targets.unsqueeze(-1)).double().sum()
