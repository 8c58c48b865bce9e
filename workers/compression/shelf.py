"""Hidden states that wait until a block computes with them: in files beside a CPU, in pinned memory beside a card.

    shelf = shelf_for(device, directory)
    shelf.put(3, hidden)
    shelf.expect(3)                         # begins to bring it, while the device computes something else
    shelf.get(3)

Promise: beside a CPU nothing that waits is in memory. Beside a card neither `put` nor `get` makes the host wait.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from workers.compression.lane import Lane, lane_for

PINNED = 2**34
"""The most bytes that one shelf pins; what waits beyond goes into files."""


class Shelf(Protocol):
    """Tensors by number."""

    def put(self, key: int, tensor: Tensor) -> None:
        """Keep a copy of a tensor in place of the one of this number."""

    def get(self, key: int) -> Tensor:
        """Return the tensor of this number, on the device. Raises KeyError or FileNotFoundError if there is none."""

    def expect(self, key: int) -> None:
        """Begin to bring the tensor of this number to the device; do nothing if there is none."""

    def remove(self, key: int) -> None:
        """Drop the tensor of this number."""

    def numbers(self) -> list[int]:
        """Return the numbers of all tensors."""


def shelf_for(device: torch.device, directory: Path) -> Shelf:
    """Return an empty shelf for tensors of the device; its files lie in the existing, empty `directory`."""
    files = FileShelf(directory)
    return files if device.type == "cpu" else PinnedShelf(lane_for(device), files)


class FileShelf:
    """A shelf that keeps each tensor in a file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, key: int, tensor: Tensor) -> None:
        # Cloned, because saving a view would write the whole tensor that it is a part of.
        whole = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        torch.save(whole, self._directory / str(key))

    def get(self, key: int) -> Tensor:
        tensor: Tensor = torch.load(self._directory / str(key))
        return tensor

    def expect(self, key: int) -> None:
        """Do nothing: the system reads ahead."""

    def remove(self, key: int) -> None:
        (self._directory / str(key)).unlink()

    def numbers(self) -> list[int]:
        return [int(file.name) for file in self._directory.iterdir()]


class PinnedShelf:
    """A shelf in the host's memory, beyond `room` bytes in `files`."""

    def __init__(self, lane: Lane, files: Shelf, room: int = PINNED) -> None:
        self._lane, self._files, self._room = lane, files, room
        self._host: dict[int, Tensor] = {}
        self._filed: set[int] = set()
        self._coming: dict[int, Callable[[], dict[str, Tensor]]] = {}

    def put(self, key: int, tensor: Tensor) -> None:
        self._coming.pop(key, None)
        into = self._host.get(key)
        if into is None or (into.shape, into.dtype) != (tensor.shape, tensor.dtype):
            if key in self.numbers():
                self.remove(key)
            if tensor.nbytes > self._room - sum(each.nbytes for each in self._host.values()):
                self._files.put(key, tensor)
                self._filed.add(key)
                return
            into = self._host[key] = self._lane.empty(tensor.shape, tensor.dtype)
        self._lane.to_host(tensor, into)

    def get(self, key: int) -> Tensor:
        if key not in self._host:
            return self._files.get(key)
        self.expect(key)
        return self._coming.pop(key)()[""]

    def expect(self, key: int) -> None:
        if key in self._host and key not in self._coming:
            self._coming[key] = self._lane.to_device({"": self._host[key]})

    def remove(self, key: int) -> None:
        self._coming.pop(key, None)
        if key in self._filed:
            self._filed.remove(key)
            self._files.remove(key)
        else:
            del self._host[key]

    def numbers(self) -> list[int]:
        return [*self._host, *self._filed]
