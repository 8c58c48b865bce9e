"""Copies on a stream of their own: none is read before it is made, and no memory is used again before it was read.

Streams are stood in for by lists of operations. An operation knows which others are over before it begins: those of its
own stream, and those that its stream has waited for.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from workers.compression.lane import CudaLane
from workers.compression.shelf import FileShelf, PinnedShelf

DEVICE = torch.device("cuda", 0)


class Stream:
    """A stream: the operations that are over before its next one begins."""

    current: "Stream"

    def __init__(self, *_: Any) -> None:
        self.over: set[object] = set()

    def record_event(self) -> set[object]:
        return set(self.over)

    def wait_event(self, event: set[object]) -> None:
        self.over |= event

    def wait_stream(self, other: "Stream") -> None:
        self.over |= other.over


class Memory:
    """A tensor's memory that knows who has written and read it, and for which streams it is kept once it is let go."""

    shape, dtype, nbytes = torch.Size((2, 3)), torch.float32, 24

    def __init__(self) -> None:
        self.writer: object = None
        self.readers: set[object] = set()
        self.streams = {Stream.current}
        self.kept = {Stream.current}

    def read(self) -> object:
        """Let an operation of the current stream read it, and return the operation."""
        operation, stream = object(), Stream.current
        # What the host has written is there.
        assert self.writer is None or self.writer in stream.over, "it is read before it is written"
        stream.over.add(operation)
        self.readers.add(operation)
        self.streams.add(stream)
        return operation

    def write(self, operation: object = None) -> "Memory":
        """Let an operation of the current stream write it."""
        operation, stream = operation or object(), Stream.current
        assert self.readers <= stream.over, "it is written before it was read"
        stream.over.add(operation)
        self.writer, self.readers = operation, set()
        self.streams.add(stream)
        return self

    def copy_(self, other: "Memory", *, non_blocking: bool) -> None:
        assert non_blocking
        self.write(other.read())

    def to(self, device: torch.device, *, non_blocking: bool) -> "Memory":
        assert non_blocking
        return Memory().write(self.read())

    def record_stream(self, stream: Stream) -> None:
        self.kept.add(stream)

    def let_go(self) -> None:
        """Free it: what its own stream allocates next may lie there."""
        assert self.streams <= self.kept, "it is used again while another stream uses it"


@pytest.fixture
def _streams(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, Stream.current = Stream.current, stream
        yield
        Stream.current = before

    Stream.current = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream.current)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    # Memory of the host belongs to no stream.
    monkeypatch.setattr(torch, "empty", lambda *_, pin_memory, **__: Memory() if pin_memory else None)


def as_tensor(memory: Memory) -> Tensor:
    return cast("Tensor", memory)


@pytest.mark.usefixtures("_streams")
def test_states_go_to_the_host_and_back_without_a_race(tmp_path: Path) -> None:
    shelf = PinnedShelf(CudaLane(DEVICE), FileShelf(tmp_path))
    for _ in range(2):
        for key in range(3):
            hidden = Memory().write()
            shelf.put(key, as_tensor(hidden))
            hidden.let_go()
        for key in range(3):
            states = cast("Memory", shelf.get(key))
            shelf.expect(key + 1)
            states.read()
            states.let_go()


@pytest.mark.usefixtures("_streams")
def test_a_block_is_read_only_once_it_has_arrived() -> None:
    lane = CudaLane(DEVICE)
    block = {name: as_tensor(Memory()) for name in ("up", "down")}
    with torch.cuda.stream(cast("torch.cuda.Stream", Stream())):  # another thread's
        arriving = lane.to_device(block)
    for each in arriving().values():
        memory = cast("Memory", each)
        memory.read()
        memory.let_go()
