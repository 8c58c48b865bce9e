"""Two processes that train together end where one ends alone."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from tests.support.ports import free_port
from tests.support.students import edited, opened
from tests.support.together import run_together
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.distillation import distil
from workers.compression.training.parallel import DataParallel, ParallelStrategy, PeerLost, losing_peers
from workers.compression.training.settings import DistillationSettings

LENGTH = 12
SETTINGS = DistillationSettings(tokens=6 * 5 * LENGTH, batch_size=5, micro_batch_size=2, learning_rate=3e-3, interval=3)


def text() -> Tensor:
    return torch.randint(3, 96, (10, LENGTH), generator=torch.Generator().manual_seed(3))


def trained(source: Path, parallel: ParallelStrategy | None = None) -> tuple[PreTrainedModel, TrainingCheckpoint]:
    original = opened(source)
    student = edited(original, "without_first_block").whole()
    return student, distil(original.whole(), student, text(), SETTINGS, parallel=parallel)


def one_of_two(rank: int, source: Path, port: int) -> None:
    """Leaves the weights and losses of its training; then one process leaves the other."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    student, last = trained(source, DataParallel())
    torch.save({"weights": student.state_dict(), "losses": last.losses}, source.parent / f"{rank}.pt")
    DataParallel().wait()
    if rank == 1:
        os._exit(0)
    with pytest.raises(PeerLost):
        DataParallel().add([torch.ones(4)])
    (source.parent / "noticed").touch()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory that two processes wrote; 5 windows a step are unequal shares."""
    directory = tmp_path_factory.mktemp("parallel")
    opened(directory / "source")
    run_together(one_of_two, (directory / "source", free_port()), 2)
    return directory


def test_two_processes_end_with_the_weights_of_one(directory: Path) -> None:
    student, last = trained(directory / "source")
    found = torch.load(directory / "0.pt")
    assert found["losses"] == pytest.approx(last.losses, rel=1e-4)
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(found["weights"][name], tensor, rtol=1e-3, atol=1e-4)


def test_both_processes_have_the_same_weights_bit_for_bit(directory: Path) -> None:
    one, other = (torch.load(directory / f"{rank}.pt") for rank in (0, 1))
    assert one["losses"] == other["losses"]
    assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in one["weights"].items())


def test_the_loss_of_a_process_is_told_from_other_failures(directory: Path) -> None:
    assert (directory / "noticed").exists()


def test_a_step_smaller_than_the_processes_are_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match="3 sequences cannot be divided among 4"):
        DataParallel().share(torch.arange(3))


def test_memory_that_runs_out_together_is_no_lost_process() -> None:
    with pytest.raises(torch.OutOfMemoryError), losing_peers():
        raise torch.OutOfMemoryError
