"""Processes that hold a share of the models each end where one ends that holds them whole."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from tests.support.ports import free_port
from tests.support.students import Recorder, edited, opened, windows_of_text
from tests.support.together import run_together
from workers.compression.training import split
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.loop import Observer
from workers.compression.training.parallel import ParallelStrategy, PeerLost
from workers.compression.training.settings import DistillationSettings
from workers.compression.training.sharded import Sharded

LENGTH = 12
SETTINGS = DistillationSettings(tokens=6 * 4 * LENGTH, batch_size=4, micro_batch_size=1, learning_rate=3e-3, interval=3)


class Training(NamedTuple):
    """A student's kind, and what differs from `SETTINGS`."""

    student: str
    settings: DistillationSettings
    compute_dtype: torch.dtype | None = None


TRAININGS = {
    "all": Training("untied", SETTINGS),
    "factors": Training("factored", replace(SETTINGS, trainable="factors", gradient_checkpointing=True)),
    "norms": Training("untied", replace(SETTINGS, trainable="norms", hidden_weight=0.5)),
    "bfloat16": Training("untied", replace(SETTINGS, gradient_checkpointing=True), torch.bfloat16),
}


class Counting(Sharded):
    """Notes how many elements it holds of how many: of the blocks' matrices, and of these in a checkpoint."""

    def divide(self, teacher: PreTrainedModel, student: PreTrainedModel, *others: Any) -> None:
        super().divide(teacher, student, *others)
        matrices = {"teacher": matrices_of(teacher), "student": matrices_of(student)}
        self.held_of = {
            name: [(self.local(each).numel(), each.numel()) for each in matrices[name]] for name in matrices
        }
        self.held_of["state"] = []
        self.trained = set(matrices["student"])

    def gathered(self, local: Tensor, parameter: Tensor) -> Tensor | None:
        if parameter in self.trained:
            self.held_of["state"].append((local.numel(), parameter.numel()))
        return super().gathered(local, parameter)


def matrices_of(model: PreTrainedModel) -> list[Tensor]:
    return [each for block in split.blocks(model) for each in block.parameters() if each.ndim > 1]


def checkpoints(
    source: Path,
    training: Training,
    parallel: ParallelStrategy | None = None,
    resumed: TrainingCheckpoint | None = None,
) -> list[TrainingCheckpoint]:
    recorder = Recorder(resumed)
    run(source, training, parallel, recorder)
    return recorder.checkpoints


def run(source: Path, training: Training, parallel: ParallelStrategy | None, observer: Observer) -> None:
    original = opened(source)
    distil(
        original.whole(),
        edited(original, training.student).whole(),
        windows_of_text(10, LENGTH),
        training.settings,
        compute_dtype=training.compute_dtype,
        parallel=parallel,
        observer=observer,
    )


class Leaving(Observer):
    """Ends its process, without a word, after the first step."""

    def __init__(self, rank: int) -> None:
        self.leaves = rank == 1

    def on_step(self, step: int, loss: float, restarts: int) -> None:
        if self.leaves:
            os._exit(0)


def one_of_two(rank: int, port: int, source: Path, half: TrainingCheckpoint) -> None:
    """Leaves the checkpoints of each training and the last of those gone on with; then one process leaves the other."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    counting = Counting()
    found = {name: checkpoints(source, each, counting) for name, each in TRAININGS.items()}
    again = {name: checkpoints(source, TRAININGS[name], counting, found[name][0])[-1] for name in TRAININGS}
    *_, onwards = checkpoints(source, TRAININGS["all"], counting, half)
    torch.save((found, again, onwards, counting.held_of), source.parent / f"{rank}.pt")
    with pytest.raises(PeerLost):
        run(source, TRAININGS["all"], counting, Leaving(rank))
    (source.parent / "noticed").touch()


def one_of_three(rank: int, port: int, source: Path, training: Training) -> None:
    """Leaves the checkpoints and the last of those gone on with, as the leading process has them."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=3)
    found = checkpoints(source, training, Sharded())
    *_, again = checkpoints(source, training, Sharded(), found[0])
    if rank == 0:
        torch.save((found[-1], again), source.parent / "three.pt")


class Written(NamedTuple):
    """By one of two processes: checkpoints, the last of those gone on with, and what was held of how much."""

    found: dict[str, list[TrainingCheckpoint]]
    again: dict[str, TrainingCheckpoint]
    onwards: TrainingCheckpoint
    held_of: dict[str, list[tuple[int, int]]]


class Left(NamedTuple):
    source: Path
    alone: dict[str, list[TrainingCheckpoint]]
    leading: Written
    other: Written


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Return what two processes wrote, and what one wrote."""
    source = tmp_path_factory.mktemp("sharded") / "source"
    opened(source)
    alone = {name: checkpoints(source, each) for name, each in TRAININGS.items()}
    run_together(one_of_two, (free_port(), source, alone["all"][0]), 2)
    leading, other = (Written(*torch.load(source.parent / f"{rank}.pt", weights_only=False)) for rank in (0, 1))
    return Left(source, alone, leading, other)


def assert_close(found: TrainingCheckpoint, expected: TrainingCheckpoint) -> None:
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


@pytest.mark.full
def test_three_processes_whose_shares_of_a_matrix_are_uneven_end_with_the_weights_of_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    training = Training("untied", replace(SETTINGS, tokens=4 * 3 * LENGTH, batch_size=3, interval=2))
    assert any(len(matrix) % 3 for matrix in matrices_of(opened(source).whole()))
    *_, alone = checkpoints(source, training)
    run_together(one_of_three, (free_port(), source, training), 3)
    found, again = torch.load(tmp_path / "three.pt", weights_only=False)
    assert_close(found, alone)
    torch.testing.assert_close(dict(again.tensors), dict(found.tensors), rtol=0, atol=0)


def test_unequal_shares_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="5 sequences cannot be divided evenly among 2"):
        Sharded().share(torch.arange(5))


def test_a_teacher_that_some_would_not_ask_is_refused(tmp_path: Path) -> None:
    training = Training("untied", replace(SETTINGS, teacher_top_k=8))
    with pytest.raises(ValueError, match="cannot be cached"):
        checkpoints(tmp_path / "source", training, Sharded())
