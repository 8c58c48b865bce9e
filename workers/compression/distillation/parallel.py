"""One training in several processes, each of which computes its share of every step."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Ranks(Protocol):
    """What training needs of the processes that it is divided among."""

    def share(self, chosen: Tensor) -> Tensor:
        """Those of a step's windows that are this process's."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over all processes in the place of each tensor."""


class Alone:
    """A single process."""

    def share(self, chosen: Tensor) -> Tensor:
        return chosen

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is to be added."""
