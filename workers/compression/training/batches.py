"""Choose the sequences of each training step. A batch follows from the step's number and the seed alone.

Every epoch visits the sequences in a random order of its own.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class BatchOrder(Protocol):
    """Assigns sequences to steps."""

    def batch(self, step: int) -> Tensor:
        """Return the indices [batch] of the sequences of a step, counted from 0."""


@dataclass(frozen=True)
class ContinuousBatches:
    """Epochs joined end to end: a batch may hold the end of one epoch and the beginning of the next."""

    sequences: int
    batch_size: int
    seed: int = 0

    def batch(self, step: int) -> Tensor:
        """Return the indices [batch_size] of the sequences of a step, counted from 0."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = {position // self.sequences for position in positions}
        orders = {epoch: _shuffled(self.sequences, self.seed, epoch) for epoch in epochs}
        return torch.stack([orders[position // self.sequences][position % self.sequences] for position in positions])


@dataclass(frozen=True)
class DropLastBatches:
    """Epochs of whole batches: sequences that do not fill a batch at the end of an epoch are left out of it.

    A batch has at most as many sequences as there are.
    """

    sequences: int
    batch_size: int
    seed: int = 0

    def batch(self, step: int) -> Tensor:
        """Return the indices [min(batch_size, sequences)] of the sequences of a step, counted from 0."""
        size = min(self.batch_size, self.sequences)
        epoch, start = divmod(step * size, self.sequences // size * size)
        return _shuffled(self.sequences, self.seed, epoch)[start : start + size]


def _shuffled(sequences: int, seed: int, epoch: int) -> Tensor:
    """Return the order [sequences] of an epoch."""
    generator = torch.Generator().manual_seed((1_000_003 * seed + epoch) % 2**63)
    return torch.randperm(sequences, generator=generator)
