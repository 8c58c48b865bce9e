"""Find out how much of an evaluation text was also in the training or calibration text, by content.

    shared(judged, [calibration, distillation])      # token ids [N] each; the fraction of the first found in the rest

A passage is PASSAGE tokens in a row. A match of that length is hardly ever chance, and a copied document is found even
where its beginning or order differs. Lee et al., "Deduplicating training data makes language models better" (arXiv
2107.06499), likewise look for exact substrings of 50 tokens. As in Llama 2 (arXiv 2307.09288, A.6) tokens are counted,
so a copied paragraph counts as much as it does in the measurement.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

PASSAGE = 50
"""Length of a match in tokens."""

# Odd constants with well-spread bits: the golden ratio's, and two from common random number generators.
_SPREAD, _MIXED, _BASE = -0x61C8864680B583EB, 0x3C79AC492BA7B653, 0x5851F42D4C957F2D


def shared(judged: Tensor, learnt: Iterable[Tensor], passage: int = PASSAGE) -> float:
    """Return the fraction of tokens of `judged` [N] that lie in a passage which also occurs in one of `learnt` [M]
    each.

    The result is between 0 and 1. A judged text shorter than `passage` tokens is looked for as a whole; an empty one
    gives 0.
    """
    passage = min(passage, len(judged))
    if passage == 0:
        return 0.0
    wanted = _hashes(judged, passage)
    found = torch.zeros(len(wanted), dtype=torch.bool)
    for text in learnt:
        if len(text) >= passage:
            found |= torch.isin(wanted, _hashes(text, passage))
    return _mark_passages(found, passage).double().mean().item()


def _hashes(tokens: Tensor, passage: int) -> Tensor:
    """Return a rolling hash of each passage [N − passage + 1]: a polynomial in mixed tokens modulo 2⁶⁴ (int64 wraps
    around)."""
    mixed = (tokens.to("cpu", torch.int64) + 1) * _SPREAD
    mixed = (mixed ^ (mixed >> 29)) * _MIXED
    mixed = mixed ^ (mixed >> 32)
    places = len(tokens) - passage + 1
    hashes = torch.zeros(places, dtype=torch.int64)
    for offset in range(passage):
        hashes = hashes * _BASE + mixed[offset : offset + places]
    return hashes


def _mark_passages(found: Tensor, passage: int) -> Tensor:
    """Return [N]: whether each token lies in a passage that begins where `found` [N − passage + 1] is true."""
    changes = torch.zeros(len(found) + passage, dtype=torch.int64)
    changes[: len(found)] += found
    changes[passage:] -= found.to(torch.int64)
    return changes.cumsum(0)[:-1] > 0
