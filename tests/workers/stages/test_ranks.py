"""A training that two processes share: where it ends, how it goes on, what is heard of it, and that none is left."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from pydantic import BaseModel

from modelpress.contract.codes import FailureCode
from modelpress.contract.distillation import Distillation
from tests.support.jobs import STEPS, Attempt, Stopped, distillation_job, usable_checkpoints
from tests.support.processes import processes_of
from tests.support.waiting import wait_for
from workers import rank
from workers.child import Child
from workers.compression.training.parallel import DataParallel, ParallelStrategy
from workers.compression.training.sharded import Sharded
from workers.messages import Assignment, AttemptFailed, ErrorReport, ProgressReport, ResumedReport
from workers.rank import strategy_of
from workers.stages import compress, compute, distill
from workers.stages.context import Context
from workers.stages.failures import describe
from workers.stages.ranks import LOST, follow


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Assignment:
    return distillation_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def shared(job: Assignment, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    return Attempt(by_two(job, tmp_path_factory.mktemp("shared")))


@pytest.fixture
def assignment(job: Assignment, tmp_path: Path) -> Assignment:
    """Return the same job where nothing of it is done."""
    return by_two(job, tmp_path)


@pytest.fixture(scope="module")
def alone(job: Assignment, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    return Attempt(job.model_copy(update={"work_dir": tmp_path_factory.mktemp("alone")}))


def by_two(job: Assignment, work_dir: Path) -> Assignment:
    return job.model_copy(update={"processes": 2, "work_dir": work_dir})


def sharded(assignment: Assignment, **changes: int) -> Assignment:
    recipe, asked = assignment.recipe, assignment.recipe.distillation
    assert asked is not None
    asked = asked.model_copy(update={"sharded": True, **changes})
    return assignment.model_copy(update={"recipe": recipe.model_copy(update={"distillation": asked})})


def assert_close(together: Attempt, alone: Attempt) -> None:
    (one,), (two,) = distill.curves(alone.context), distill.curves(together.context)
    assert [point.loss for point in two.points] == pytest.approx([point.loss for point in one.points], rel=1e-2)
    before = dict(list(compress.finished_parts(alone.context))[-2].tensors)
    for name, tensor in alone.trained().items():
        apart = torch.dist(together.trained()[name], tensor)
        if name in before:
            assert apart < 0.1 * torch.dist(before[name].float(), tensor)
        torch.testing.assert_close(together.trained()[name], tensor, rtol=1e-2, atol=1e-3)


def test_two_processes_end_with_the_weights_of_one(alone: Attempt, shared: Attempt) -> None:
    assert_close(shared, alone)


@pytest.mark.full
def test_two_with_a_share_of_the_models_each_do_so_though_stopped_between(
    assignment: Assignment, alone: Attempt
) -> None:
    with pytest.raises(Stopped):
        Attempt(sharded(assignment), stop_behind=9)
    last = Attempt(sharded(assignment), 2)
    assert ResumedReport(stage="distill") in last.reports
    assert_close(last, alone)


@pytest.mark.parametrize(("asked", "kind"), [(True, Sharded), (False, DataParallel)])
def test_they_divide_the_models_where_the_recipe_says_so(asked: bool, kind: type[ParallelStrategy]) -> None:
    assert type(strategy_of(Distillation(sharded=asked))) is kind


def test_every_step_is_told_once(shared: Attempt) -> None:
    assert len(shared.details()) == STEPS
    assert shared.details()[-1].startswith("distilling: 512 of 512 tokens, loss ")


def test_a_killed_child_leaves_none_of_them_behind_and_the_next_goes_on_to_the_same_weights(
    assignment: Assignment, shared: Attempt
) -> None:
    home = assignment.work_dir / "1" / "home"
    with Child("workers.runner", assignment.model_dump_json(), home, {}) as child:
        wait_for(lambda: usable_checkpoints(assignment))
        assert len(processes_of(home)) >= 4, "the child, torchrun and two that train"
        os.kill(child.process.pid, signal.SIGKILL)
        wait_for(lambda: not processes_of(home))
    last = Attempt(assignment, 2)
    assert ResumedReport(stage="distill") in last.reports
    torch.testing.assert_close(last.trained(), shared.trained(), rtol=0, atol=0)


class Heard(SimpleNamespace):
    """A context that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(reports=[])

    def report(self, message: BaseModel) -> None:
        self.reports.append(message)


def saying(*lines: str, status: int) -> list[str]:
    return [sys.executable, "-c", f"import sys; print(*{lines!r}, sep='\\n'); sys.exit({status})"]


def failing(code: FailureCode) -> ErrorReport:
    return ErrorReport(code=code, message=f"it is {code}", stage="distill")


class Deaf(SimpleNamespace):
    """A context that fails at the first report."""

    def report(self, message: BaseModel) -> None:
        raise Stopped


def test_a_failure_of_the_process_that_waits_ends_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    progress = ProgressReport(stage="distill", fraction=0.5).model_dump_json()
    program = f"import sys; print({progress!r}, flush=True); sys.stdin.read()"
    with pytest.raises(Stopped):
        follow(cast("Context", Deaf()), [sys.executable, "-c", program])
    assert processes_of(tmp_path) == [os.getpid()]


def test_what_they_report_is_passed_on_and_noise_is_not() -> None:
    heard, progress = Heard(), ProgressReport(stage="distill", fraction=0.5)
    follow(cast("Context", heard), saying("hello", progress.model_dump_json(), status=0))
    assert heard.reports == [progress]


def test_the_first_failure_is_that_of_the_job() -> None:
    lines = [failing(code).model_dump_json() for code in (FailureCode.DIVERGED, FailureCode.INTERNAL_ERROR)]
    with pytest.raises(AttemptFailed) as failed:
        follow(cast("Context", Heard()), saying(*lines, status=1))
    assert describe(failed.value) == failing(FailureCode.DIVERGED)


def test_an_end_without_a_word_is_one_by_force() -> None:
    with pytest.raises(AttemptFailed) as failed:
        follow(cast("Context", Heard()), saying(status=1))
    assert describe(failed.value) == LOST


@pytest.mark.parametrize(
    ("device", "gpus", "asked", "expected"),
    [
        ("auto", 4, None, 4),
        ("cuda", 4, None, 4),
        ("cuda", 4, 2, 2),
        ("cuda", 2, 4, 2),
        ("cuda:1", 4, None, 1),
        ("cuda:1", 4, 4, 1),
        ("cpu", 4, None, 1),
        ("cpu", 0, 3, 3),
        ("auto", 0, None, 1),
    ],
)
def test_there_is_one_for_each_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, asked: int | None, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    context = SimpleNamespace(assignment=SimpleNamespace(device=device, processes=asked))
    assert compute.processes(cast("Context", context)) == expected


@pytest.mark.parametrize(
    ("processes", "batch_size", "expected"), [(2, 5, 1), (3, 4, 2), (4, 4, 4), (5, 6, 3), (8, 6, 6)]
)
def test_so_many_hold_shares_as_divide_a_batch_evenly(
    assignment: Assignment, processes: int, batch_size: int, expected: int
) -> None:
    many = sharded(assignment, batch_size=batch_size).model_copy(update={"processes": processes})
    assert distill.processes(cast("Context", SimpleNamespace(assignment=many))) == expected


def test_there_are_no_more_than_a_batch_has_sequences(assignment: Assignment) -> None:
    many = assignment.model_copy(update={"processes": 8})
    assert distill.processes(cast("Context", SimpleNamespace(assignment=many))) == 2


def test_a_build_of_torch_without_nccl_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rank.KNOWN_BACKENDS, "nccl", lambda: False)
    with pytest.raises(AttemptFailed, match=r"needs nccl.*MODELPRESS_PROCESSES=1") as failure:
        rank.backend_of("cuda")
    assert failure.value.report().code == "missing_extra"
    assert rank.backend_of("cpu") == "gloo"
