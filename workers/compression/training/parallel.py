"""One training in several processes, each of which computes its share of every step.

    torch.distributed.init_process_group()            # as torchrun starts it
    for checkpoint in distil(..., ranks=DataParallel()):
        ...                                           # the same in every process: one of them writes it down

Each holds teacher, student and optimizer whole. `sharded` divides these too.
Promise: within the precision of a sum taken in another order, all end with the weights of a single process.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from workers.compression.training.settings import Settings


class PeerLost(RuntimeError):
    """Another of the processes is gone."""


class Ranks(Protocol):
    """What training needs of the processes that it is divided among.

    A parameter of the student, its gradient and its moments are divided alike: a process holds all of them or a share.
    """

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes down what all of them have."""

    def divide(
        self, teacher: PreTrainedModel, student: PreTrainedModel, settings: Settings, compute_dtype: torch.dtype | None
    ) -> None:
        """Leaves of both models, in place, what this process is to hold.

        Raises ValueError for settings that cannot be met so.
        """

    def share(self, chosen: Tensor) -> Tensor:
        """Those of a step's windows that are this process's."""

    def held(self, tensor: Tensor) -> Tensor:
        """What this process holds of a parameter or a gradient, in the memory of that."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over all processes in the place of tensors that are not summed yet. Raises PeerLost."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """That of all summed gradients together, the same in all processes. Raises PeerLost."""

    def gathered(self, held: Tensor, parameter: Tensor) -> Tensor | None:
        """A copy of the whole of what is held as the parameter is; None where the leading process alone has it.

        Raises PeerLost.
        """

    def scattered(self, tensors: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
        """A copy of one of the leading process's tensors, or the share of it to be held. Raises PeerLost."""

    def wait(self) -> None:
        """Until all processes have come so far. Raises PeerLost."""


class _Whole:
    """A process that holds all there is of both models."""

    def divide(
        self, teacher: PreTrainedModel, student: PreTrainedModel, settings: Settings, compute_dtype: torch.dtype | None
    ) -> None:
        """Both stay whole."""

    def held(self, tensor: Tensor) -> Tensor:
        return tensor

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return nn.utils.get_total_norm(gradients)

    def gathered(self, held: Tensor, parameter: Tensor) -> Tensor | None:
        return held.detach().clone()

    def scattered(self, tensors: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
        return tensors[name].to(parameter.device, copy=True)


class Alone(_Whole):
    """A single process."""

    leads = True

    def share(self, chosen: Tensor) -> Tensor:
        return chosen

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is to be added."""

    def wait(self) -> None:
        """Nobody is to be waited for."""


class Group:
    """The processes of torch.distributed's default group, whatever each of them holds of the models."""

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
        with together():
            handles = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for handle in handles:
                handle.wait()

    def wait(self) -> None:
        with together():
            distributed.barrier()


class DataParallel(Group, _Whole):
    """Processes with the whole teacher and student in the memory of each."""


@contextmanager
def together() -> Iterator[None]:
    """What fails here, but for want of memory, fails because another process is gone: PeerLost is raised."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(str(error)) from error
