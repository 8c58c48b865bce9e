"""Processes that hold a share of the models each end where one ends that holds them whole."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from transformers import PreTrainedModel

from tests.support.ports import free_port
from tests.support.students import edited, opened, windows_of_text
from workers.compression.training import split
from workers.compression.training.parallel import PeerLost, Ranks
from workers.compression.training.settings import Settings
from workers.compression.training.sharded import Sharded
from workers.compression.training.training import Checkpoint, distil

LENGTH = 12
SETTINGS = Settings(tokens=6 * 4 * LENGTH, sequences=4, micro_batch=1, rate=3e-3, interval=3)


class Training(NamedTuple):
    """A student's kind, and what differs from `SETTINGS`."""

    student: str
    settings: Settings
    compute_dtype: torch.dtype | None = None


TRAININGS = {
    "all": Training("untied", SETTINGS),
    "factors": Training("factored", replace(SETTINGS, train="factors", checkpointing=True)),
    "norms": Training("untied", replace(SETTINGS, train="norms", hidden=0.5)),
    "bfloat16": Training("untied", replace(SETTINGS, checkpointing=True), torch.bfloat16),
}


class Counting(Sharded):
    """Notes how many elements it holds of how many: of the blocks' matrices, and of what a checkpoint has of these."""

    def divide(self, teacher: PreTrainedModel, student: PreTrainedModel, *others: Any) -> None:
        super().divide(teacher, student, *others)
        matrices = {"teacher": matrices_of(teacher), "student": matrices_of(student)}
        self.held_of = {name: [(self.held(each).numel(), each.numel()) for each in matrices[name]] for name in matrices}
        self.held_of["state"] = []
        self.trained = set(matrices["student"])

    def gathered(self, held: Tensor, parameter: Tensor) -> Tensor | None:
        if parameter in self.trained:
            self.held_of["state"].append((held.numel(), parameter.numel()))
        return super().gathered(held, parameter)


def matrices_of(model: PreTrainedModel) -> list[Tensor]:
    return [each for block in split.blocks(model) for each in block.parameters() if each.ndim > 1]


def checkpoints(
    source: Path,
    training: Training,
    ranks: Ranks | None = None,
    resumed: Checkpoint | None = None,
    told: Callable[[int, float], None] | None = None,
) -> Iterator[Checkpoint]:
    original = opened(source)
    return distil(
        original.whole(),
        edited(original, training.student).whole(),
        windows_of_text(10, LENGTH),
        training.settings,
        compute_dtype=training.compute_dtype,
        ranks=ranks,
        resumed=resumed,
        told=told,
    )


def one_of_two(rank: int, port: int, source: Path, half: Checkpoint) -> None:
    """Leaves the checkpoints of each training and the last of those gone on with; then one process leaves the other."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    counting = Counting()
    found = {name: list(checkpoints(source, each, counting)) for name, each in TRAININGS.items()}
    again = {name: list(checkpoints(source, TRAININGS[name], counting, found[name][0]))[-1] for name in TRAININGS}
    *_, onwards = checkpoints(source, TRAININGS["all"], counting, half)
    torch.save((found, again, onwards, counting.held_of), source.parent / f"{rank}.pt")

    def leave(step: int, loss: float) -> None:
        if rank == 1:
            os._exit(0)

    with pytest.raises(PeerLost):
        list(checkpoints(source, TRAININGS["all"], counting, told=leave))
    (source.parent / "noticed").touch()


def one_of_three(rank: int, port: int, source: Path, training: Training) -> None:
    """Leaves the checkpoints and the last of those gone on with, as the leading process has them."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=3)
    found = list(checkpoints(source, training, Sharded()))
    *_, again = checkpoints(source, training, Sharded(), found[0])
    if rank == 0:
        torch.save((found[-1], again), source.parent / "three.pt")


class Written(NamedTuple):
    """By one of two processes: checkpoints, the last of those gone on with, and what was held of how much."""

    found: dict[str, list[Checkpoint]]
    again: dict[str, Checkpoint]
    onwards: Checkpoint
    held_of: dict[str, list[tuple[int, int]]]


class Left(NamedTuple):
    source: Path
    alone: dict[str, list[Checkpoint]]
    leading: Written
    other: Written


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What two processes wrote, and one."""
    source = tmp_path_factory.mktemp("sharded") / "source"
    opened(source)
    alone = {name: list(checkpoints(source, each)) for name, each in TRAININGS.items()}
    multiprocessing.spawn(one_of_two, (free_port(), source, alone["all"][0]), nprocs=2)
    leading, other = (Written(*torch.load(source.parent / f"{rank}.pt", weights_only=False)) for rank in (0, 1))
    return Left(source, alone, leading, other)


def assert_close(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    torch.testing.assert_close(dict(found.tensors), dict(expected.tensors), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["all", "factors", "norms"])
def test_two_processes_end_with_the_weights_of_one(left: Left, name: str) -> None:
    assert_close(left.leading.found[name][-1], left.alone[name][-1])


def test_in_bfloat16_they_learn_what_one_learns(left: Left) -> None:
    found, expected = left.leading.found["bfloat16"][-1], left.alone["bfloat16"][-1]
    assert {each.dtype for each in found.tensors.values()} == {torch.float32}
    assert found.losses == pytest.approx(expected.losses, rel=0.02)
    assert found.losses != pytest.approx(left.leading.found["all"][-1].losses, rel=1e-6)


def test_each_holds_half_of_the_blocks_and_of_their_moments(left: Left) -> None:
    for written in (left.leading, left.other):
        assert written.held_of.keys() == {"teacher", "student", "state"}
        for pairs in written.held_of.values():
            held, whole = map(sum, zip(*pairs, strict=True))
            assert 2 * held == whole


@pytest.mark.parametrize("name", TRAININGS)
def test_a_resumed_training_ends_with_the_same_bits(left: Left, name: str) -> None:
    expected, found = left.leading.found[name][-1], left.leading.again[name]
    assert found.losses == expected.losses
    torch.testing.assert_close(dict(found.tensors), dict(expected.tensors), rtol=0, atol=0)


def test_they_go_on_where_one_was(left: Left) -> None:
    assert_close(left.leading.onwards, left.alone["all"][-1])


def test_one_goes_on_where_they_were(left: Left) -> None:
    *_, last = checkpoints(left.source, TRAININGS["all"], resumed=left.leading.found["all"][0])
    assert_close(last, left.alone["all"][-1])


def test_the_leading_process_alone_has_whole_tensors(left: Left) -> None:
    last = left.other.found["all"][-1]
    assert last.losses == left.leading.found["all"][-1].losses
    assert not last.tensors


def test_the_loss_of_a_process_is_told_from_other_failures(left: Left) -> None:
    assert (left.source.parent / "noticed").exists()


def test_three_processes_whose_shares_of_a_matrix_are_uneven_end_with_the_weights_of_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    training = Training("untied", replace(SETTINGS, tokens=4 * 3 * LENGTH, sequences=3, interval=2))
    assert any(len(matrix) % 3 for matrix in matrices_of(opened(source).whole()))
    *_, alone = checkpoints(source, training)
    multiprocessing.spawn(one_of_three, (free_port(), source, training), nprocs=3)
    found, again = torch.load(tmp_path / "three.pt", weights_only=False)
    assert_close(found, alone)
    torch.testing.assert_close(dict(again.tensors), dict(found.tensors), rtol=0, atol=0)


def test_unequal_shares_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="5 windows cannot be divided evenly among 2"):
        Sharded().share(torch.arange(5))


def test_a_teacher_that_some_would_not_ask_is_refused(tmp_path: Path) -> None:
    training = Training("untied", replace(SETTINGS, cached_logits=8))
    with pytest.raises(ValueError, match="ask a sharded teacher at once"):
        next(checkpoints(tmp_path / "source", training, Sharded()))
