"""One training in several processes, each of which computes its share of every step.

    torch.distributed.init_process_group()            # as torchrun starts it
    for checkpoint in distil(..., ranks=DataParallel()):
        ...                                           # the same in every process: one of them writes it down

Each holds teacher, student and optimizer whole; nothing is sharded, so what fits into no single memory does not train.
Promise: within the precision of a sum taken in another order, all end with the weights of a single process.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, distributed


class PeerLost(RuntimeError):
    """Another of the processes is gone."""


class Ranks(Protocol):
    """What training needs of the processes that it is divided among."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes down what all of them have."""

    def share(self, chosen: Tensor) -> Tensor:
        """Those of a step's windows that are this process's."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over all processes in the place of each tensor. Raises PeerLost."""

    def wait(self) -> None:
        """Until all processes have come so far. Raises PeerLost."""


class Alone:
    """A single process."""

    leads = True

    def share(self, chosen: Tensor) -> Tensor:
        return chosen

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is to be added."""

    def wait(self) -> None:
        """Nobody is to be waited for."""


class DataParallel:
    """The processes of torch.distributed's default group, each with the whole teacher and student in its memory."""

    @property
    def leads(self) -> bool:
        return distributed.get_rank() == 0

    def share(self, chosen: Tensor) -> Tensor:
        """Raises ValueError where a step has fewer windows than there are processes."""
        processes = distributed.get_world_size()
        if len(chosen) < processes:
            raise ValueError(f"a step of {len(chosen)} windows cannot be divided among {processes} processes")
        return chosen[distributed.get_rank() :: processes]

    def add(self, tensors: Sequence[Tensor]) -> None:
        with _together():
            handles = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for handle in handles:
                handle.wait()

    def wait(self) -> None:
        with _together():
            distributed.barrier()


@contextmanager
def _together() -> Iterator[None]:
    """What fails here fails because another process does not take part any more."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(str(error)) from error
