"""One draw from each of many distributions."""

import torch
from torch import Tensor


def drawn(cumulated: Tensor, generator: torch.Generator) -> Tensor:
    """A place in each row, [rows], by inversion of `cumulated` weights [rows, n], which need not end at 1.

    On a CPU `torch.multinomial` takes a random number for each of the n, which costs much where these are a vocabulary.
    The generator is one of the CPU.
    """
    point = torch.rand(len(cumulated), 1, generator=generator).to(cumulated) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, point, right=True)[:, 0].clamp_(max=cumulated.shape[-1] - 1)
