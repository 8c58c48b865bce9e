"""One draw from each of many distributions. The generators are of the CPU."""

import torch
from torch import Tensor


def drawn(cumulated: Tensor, generator: torch.Generator) -> Tensor:
    """A place in each row, [rows], by inversion of `cumulated` weights [rows, n], which need not end at 1.

    On a CPU `torch.multinomial` takes a random number for each of the n, which costs much where these are a vocabulary.
    """
    point = torch.rand(len(cumulated), 1, generator=generator).to(cumulated) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, point, right=True)[:, 0].clamp_(max=cumulated.shape[-1] - 1)


def drawn_of_each(weights: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """A place in `weights` for each group, [groups], where these follow one another, so many of each as `counts` says.

    No group is empty.
    """
    cumulated = weights.double().cumsum(0)
    last = counts.cumsum(0) - 1
    ends = cumulated[last]
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    point = begins + (ends - begins) * torch.rand(len(counts), generator=generator, dtype=torch.float64).to(ends.device)
    return torch.searchsorted(cumulated, point, right=True).minimum(last)
