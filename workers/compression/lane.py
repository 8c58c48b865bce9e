"""Copies between host and device that run beside the computing.

    lane = lane_for(device)
    arriving = lane.to_device(tensors)      # begins
    ...                                     # computes with other tensors
    arriving()                              # the copies; what follows on the device waits for them, the host does not

On CUDA the copies have a stream of their own and start from pinned memory. Elsewhere they are made at once.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor


class Lane(Protocol):
    """The way between the host's memory and a device."""

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return host memory for a tensor from which, and into which, copies are fast."""

    def to_device(self, tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """Begin to copy tensors of the host, and return the function that returns the copies."""

    def to_host(self, tensor: Tensor, into: Tensor) -> None:
        """Begin to copy a tensor of the device into host memory, from where only this lane may read it."""


def lane_for(device: torch.device) -> Lane:
    """Return the lane of a device."""
    return CudaLane(device) if device.type == "cuda" else DirectLane(device)


class DirectLane:
    """A lane that copies at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def to_device(self, tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        copies = {name: tensor.to(self._device, copy=True) for name, tensor in tensors.items()}
        return lambda: copies

    def to_host(self, tensor: Tensor, into: Tensor) -> None:
        into.copy_(tensor)


class CudaLane:
    """A stream for the copies of one card, in both directions, which keeps them in order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        # A thread that has chosen no card would pin its memory, and begin to use the first one.
        with torch.cuda.device(self._device):
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def to_device(self, tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        with torch.cuda.stream(self._stream):
            copies = {name: tensor.to(self._device, non_blocking=True) for name, tensor in tensors.items()}
        arrived = self._stream.record_event()

        def wait() -> dict[str, Tensor]:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(arrived)
            for copy in copies.values():
                # The copies were allocated for the lane's stream: their memory is not reused before this one is done.
                copy.record_stream(computing)
            return copies

        return wait

    def to_host(self, tensor: Tensor, into: Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            into.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)
