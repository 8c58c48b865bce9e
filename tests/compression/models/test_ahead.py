"""Blocks that are read ahead: which one is next, that it is begun in time, and that a changed block is read anew."""

from threading import Event

import pytest
import torch
from torch import Tensor

from workers.compression.lane import DirectLane
from workers.compression.models.ahead import Ahead, Allocate

LONG = 60


class Source:
    """Four blocks of one tensor, which holds the block's number and how often the block has changed."""

    def __init__(self) -> None:
        self.changes = 0
        self.read: list[int] = []
        self.reading = {index: Event() for index in range(4)}
        self.broken: set[int] = set()

    def __call__(self, index: int, empty: Allocate) -> dict[str, Tensor]:
        self.read.append(index)
        self.reading[index].set()
        if index in self.broken:
            raise OSError(f"block {index} cannot be read")
        content = torch.tensor([index, self.changes])
        return {"": empty(content.shape, content.dtype).copy_(content)}


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def ahead(source: Source) -> Ahead:
    return Ahead(source, lambda: range(4), DirectLane(torch.device("cpu")))


def taken(ahead: Ahead, *indices: int) -> list[list[int]]:
    return [ahead.take(index)[""].tolist() for index in indices]


def test_the_next_block_is_read_while_the_caller_computes(source: Source, ahead: Ahead) -> None:
    taken(ahead, 0)
    assert source.reading[1].wait(LONG)  # nobody has asked for it yet


def test_each_block_is_read_once_in_either_direction(source: Source, ahead: Ahead) -> None:
    assert taken(ahead, 0, 1, 2, 3, 2, 1, 0) == [[index, 0] for index in (0, 1, 2, 3, 2, 1, 0)]
    ahead.drop()
    assert source.read == [0, 1, 2, 3, 2, 1, 0]


def test_a_block_out_of_order_is_the_one_that_was_asked_for(ahead: Ahead) -> None:
    assert taken(ahead, 0, 3, 1) == [[0, 0], [3, 0], [1, 0]]


def test_a_block_that_changed_after_it_was_read_is_read_anew(source: Source, ahead: Ahead) -> None:
    taken(ahead, 0)
    assert source.reading[1].wait(LONG)
    ahead.drop()
    source.changes += 1
    assert taken(ahead, 1) == [[1, 1]]


def test_an_error_of_reading_reaches_the_one_who_asks_for_the_block(source: Source, ahead: Ahead) -> None:
    source.broken = {1}
    taken(ahead, 0)
    with pytest.raises(OSError, match="block 1"):
        ahead.take(1)
    source.broken = set()
    assert taken(ahead, 1) == [[1, 0]]
