"""Hidden states on a shelf: in files beside a CPU, in the host's memory beside a card."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.card import CARD, card
from workers.compression.lane import DirectLane
from workers.compression.shelf import FileShelf, PinnedShelf, Shelf, shelf_for

CPU = torch.device("cpu")


class LoggingLane(DirectLane):
    """A lane that writes down when a copy begins, and when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.log: list[str] = []

    def to_device(self, tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        arriving, first = super().to_device(tensors), int(next(iter(tensors.values()))[0])
        self.log.append(f"begin {first}")

        def wait() -> dict[str, Tensor]:
            self.log.append(f"wait {first}")
            return arriving()

        return wait


@pytest.fixture(params=["files", "host", "beyond the room"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    files = FileShelf(tmp_path)
    room = {"host": 2**20, "beyond the room": 40}
    return files if request.param == "files" else PinnedShelf(DirectLane(CPU), files, room[request.param])


def numbered(number: int, size: int = 4) -> Tensor:
    return torch.arange(number, number + size).float()


def test_a_shelf_returns_what_was_put_last(shelf: Shelf) -> None:
    for number in range(4):
        shelf.put(number, numbered(number))
    shelf.put(1, numbered(7))
    shelf.put(2, numbered(8, size=6))
    shelf.expect(3)
    shelf.put(3, numbered(9))
    found = {number: shelf.get(number) for number in sorted(shelf.numbers())}
    assert {number: each.tolist() for number, each in found.items()} == {
        0: [0, 1, 2, 3],
        1: [7, 8, 9, 10],
        2: [8, 9, 10, 11, 12, 13],
        3: [9, 10, 11, 12],
    }


def test_what_was_removed_is_gone(shelf: Shelf) -> None:
    for number in range(4):
        shelf.put(number, numbered(number))
    shelf.remove(0)
    shelf.remove(3)
    assert sorted(shelf.numbers()) == [1, 2]


def test_what_a_shelf_returns_does_not_change_with_what_is_put_later(shelf: Shelf) -> None:
    shelf.put(0, numbered(0))
    before = shelf.get(0)
    shelf.put(0, numbered(5))
    assert before.tolist() == [0, 1, 2, 3]


def test_a_file_holds_no_more_than_the_view_that_was_put(tmp_path: Path) -> None:
    FileShelf(tmp_path).put(0, torch.zeros(1000, 100)[:1])
    assert (tmp_path / "0").stat().st_size < 10_000


def test_what_is_expected_is_on_its_way_before_it_is_asked_for(tmp_path: Path) -> None:
    lane = LoggingLane()
    shelf = PinnedShelf(lane, FileShelf(tmp_path))
    shelf.put(1, numbered(1))
    shelf.put(2, numbered(2))
    shelf.expect(1)
    shelf.expect(2)
    shelf.get(1)
    assert lane.log == ["begin 1", "begin 2", "wait 1"]


def test_a_card_s_states_come_back_to_the_card_and_touch_no_file(tmp_path: Path) -> None:
    with card():
        shelf = shelf_for(CARD, tmp_path)
        shelf.put(0, numbered(3).to(CARD))
        assert shelf.get(0).device == CARD
        assert shelf.get(0).tolist() == [3, 4, 5, 6]
    assert not list(tmp_path.iterdir())
