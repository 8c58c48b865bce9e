"""Draw one sample from each of many distributions, or sequences of a text. The random generators are CPU generators."""

import torch
from torch import Tensor


def draw_from_rows(cumulated: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random index in each row [rows], by inversion of `cumulated` weights [rows, n], which need not end at 1.

    On a CPU `torch.multinomial` draws a random number for each of the n weights, which is slow for a vocabulary.
    """
    point = torch.rand(len(cumulated), 1, generator=generator).to(cumulated) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, point, right=True)[:, 0].clamp_(max=cumulated.shape[-1] - 1)


def draw_from_groups(weights: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random index into `weights` for each group, [groups].

    `weights` holds the groups' weights one after another, `counts` [groups] their lengths, all of at least 1.
    """
    cumulated = weights.double().cumsum(0)
    last = counts.cumsum(0) - 1
    ends = cumulated[last]
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    point = begins + (ends - begins) * torch.rand(len(counts), generator=generator, dtype=torch.float64).to(ends.device)
    return torch.searchsorted(cumulated, point, right=True).minimum(last)


def evenly_spread(ids: Tensor, count: int) -> Tensor:
    """Return at most `count` sequences of `ids` [N, T], evenly spaced from the first to the last."""
    return ids[torch.linspace(0, len(ids) - 1, min(count, len(ids))).long()]
