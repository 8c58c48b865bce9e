"""One training in several processes, each of which computes its share of every step.

    torch.distributed.init_process_group()            # as torchrun starts it
    for checkpoint in distil(..., ranks=DataParallel()):
        ...                                           # the same in every process: one of them writes it down

Promise: within the precision of a sum taken in another order, all end with the weights of a single process.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, distributed


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


class DataParallel:
    """The processes of torch.distributed's default group, each with the whole teacher and student in its memory."""

    def share(self, chosen: Tensor) -> Tensor:
        """Raises ValueError where a step has fewer windows than there are processes."""
        processes = distributed.get_world_size()
        if len(chosen) < processes:
            raise ValueError(f"a step of {len(chosen)} windows cannot be divided among {processes} processes")
        return chosen[distributed.get_rank() :: processes]

    def add(self, tensors: Sequence[Tensor]) -> None:
        handles = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
        for handle in handles:
            handle.wait()
