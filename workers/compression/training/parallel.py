"""Share the work of one training run among several processes.

    torch.distributed.init_process_group()            # as torchrun starts it
    distil(..., parallel=DataParallel())              # the same call in every process; rank 0 keeps checkpoints

With `DataParallel` each process holds teacher, student and optimizer whole. `sharded` divides these too.
Promise: all processes end with the weights of a single one, within the precision of a sum taken in another order.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from workers.compression.training.settings import DistillationSettings


class PeerLost(RuntimeError):
    """Another process of the group is gone."""


class ParallelStrategy(Protocol):
    """How training is divided among processes.

    A process holds a parameter of the student whole or a shard of it; its gradient and AdamW's state are divided the
    same way. The calls that communicate are collective: every process of the group makes them in the same order.
    """

    computes_alone: bool
    """Whether a process computes its share of a step without the others: it may then compute it again."""

    @property
    def leads(self) -> bool:
        """Whether this process, rank 0, keeps the checkpoints."""

    def divide(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        settings: DistillationSettings,
        compute_dtype: torch.dtype | None,
    ) -> None:
        """Reduce both models, in place, to what this process holds.

        Raises:
            ValueError: when the models cannot be divided under these settings.
        """

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part [n] of the sequence indices `batch` [batch_size].

        Raises:
            ValueError: when the batch cannot be divided among the processes.
        """

    def local(self, tensor: Tensor) -> Tensor:
        """Return what this process holds of a parameter or gradient, sharing its memory."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace, in place, each tensor that differs between the processes by its sum over them. Raises PeerLost."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the L2 norm, a scalar, of all summed gradients together. Raises PeerLost."""

    def gathered(self, local: Tensor, parameter: Tensor) -> Tensor | None:
        """Return a whole copy of a tensor that is divided as the parameter is; None where only the leader has it.

        Raises:
            PeerLost: when another of the processes is gone.
        """

    def scattered(self, tensors: Mapping[str, Tensor], key: str, parameter: Tensor) -> Tensor:
        """Return a copy of what this process is to hold of the leader's `tensors[key]`, divided as the parameter is.

        Raises:
            PeerLost: when another of the processes is gone.
        """

    def wait(self) -> None:
        """Block until all processes have made this call. Raises PeerLost."""


class _WholeModels:
    """The part of a strategy that is the same wherever a process holds both models whole."""

    computes_alone = True

    def divide(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        settings: DistillationSettings,
        compute_dtype: torch.dtype | None,
    ) -> None:
        """Leave both models whole."""

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return nn.utils.get_total_norm(gradients)

    def gathered(self, local: Tensor, parameter: Tensor) -> Tensor | None:
        return local.detach().clone()

    def scattered(self, tensors: Mapping[str, Tensor], key: str, parameter: Tensor) -> Tensor:
        return tensors[key].to(parameter.device, copy=True)


class SingleProcess(_WholeModels):
    """One process that does all the work."""

    leads = True

    def share(self, batch: Tensor) -> Tensor:
        """Return the whole batch."""
        return batch

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Do nothing: there is nothing to add."""

    def wait(self) -> None:
        """Do nothing: there is no other process."""


class ProcessGroup:
    """The part of a strategy that is common to the processes of torch.distributed's default group."""

    @property
    def leads(self) -> bool:
        return distributed.get_rank() == 0

    def share(self, batch: Tensor) -> Tensor:
        """Return every n-th of the sequence indices `batch` [batch_size], where n processes take part.

        Raises:
            ValueError: when the batch has fewer sequences than there are processes.
        """
        processes = distributed.get_world_size()
        if len(batch) < processes:
            raise ValueError(f"a batch of {len(batch)} sequences cannot be divided among {processes} processes")
        return batch[distributed.get_rank() :: processes]

    def add(self, tensors: Sequence[Tensor]) -> None:
        with losing_peers():
            handles = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for handle in handles:
                handle.wait()

    def wait(self) -> None:
        with losing_peers():
            distributed.barrier()


class DataParallel(ProcessGroup, _WholeModels):
    """Each process holds both models whole and computes its share of every batch."""


@contextmanager
def losing_peers() -> Iterator[None]:
    """Raise PeerLost for a RuntimeError of the collective calls inside, unless memory ran out here."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(str(error)) from error
