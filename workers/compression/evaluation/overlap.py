"""Whether a text that a model is judged by was also learnt from: passages that both have, found by content.

    shared(judged, [calibration, distillation])      # token ids [N] each; the share of the first that is in the rest

A passage is PASSAGE tokens in a row. So long a match hardly ever comes by chance, while a copied document is found even
where its beginning or its order is another: exact substrings of 50 tokens are what Lee et al., "Deduplicating training
data makes language models better" (arXiv 2107.06499), look for. As in Llama 2 (arXiv 2307.09288, A.6) it is tokens that
are counted, so a copied paragraph weighs what it is worth in the measurement.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

PASSAGE = 50
"""Tokens in a row that make a match."""

# Odd constants with well-spread bits: the golden ratio's and two of common generators of random numbers.
_SPREAD, _MIXED, _BASE = -0x61C8864680B583EB, 0x3C79AC492BA7B653, 0x5851F42D4C957F2D


def shared(judged: Tensor, learnt: Iterable[Tensor], passage: int = PASSAGE) -> float:
    """The share of the tokens `judged` [N] that lie in a passage which one of the texts `learnt` [M] has too, 0 to 1.

    A judged text shorter than a passage is looked for as a whole; an empty one shares nothing.
    """
    passage = min(passage, len(judged))
    if passage == 0:
        return 0.0
    wanted = _hashes(judged, passage)
    found = torch.zeros(len(wanted), dtype=torch.bool)
    for text in learnt:
        if len(text) >= passage:
            found |= torch.isin(wanted, _hashes(text, passage))
    return _covered(found, passage).double().mean().item()


def _hashes(tokens: Tensor, passage: int) -> Tensor:
    """[N − passage + 1]: a polynomial in mixed tokens modulo 2⁶⁴, which is how int64 multiplies."""
    mixed = (tokens.to("cpu", torch.int64) + 1) * _SPREAD
    mixed = (mixed ^ (mixed >> 29)) * _MIXED
    mixed = mixed ^ (mixed >> 32)
    places = len(tokens) - passage + 1
    hashes = torch.zeros(places, dtype=torch.int64)
    for offset in range(passage):
        hashes = hashes * _BASE + mixed[offset : offset + places]
    return hashes


def _covered(found: Tensor, passage: int) -> Tensor:
    """[N]: which tokens lie in one of the passages that begin where `found` [N − passage + 1] is true."""
    changes = torch.zeros(len(found) + passage, dtype=torch.int64)
    changes[: len(found)] += found
    changes[passage:] -= found.to(torch.int64)
    return changes.cumsum(0)[:-1] > 0
