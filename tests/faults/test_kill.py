"""What the death of a process costs: at most the block it was in."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from app.jobs import store
from app.jobs.service import JobService
from app.settings import Settings
from app.storage.registry import open_storage
from modelpress.contract.job import Job, State
from modelpress.contract.recipe import Recipe
from tests.support.children import BEGUN, HANGS_ONCE, Put, begun
from tests.support.processes import processes_of, wait_until_ended, worker
from tests.support.text_models import write_tiny_model
from tests.support.waiting import PATIENCE_SECONDS, wait_for

BLOCKS = 12


@pytest.fixture
def larger(tiny: dict[str, Any], model_root: Path) -> Recipe:
    """A recipe that takes long enough to be interrupted in the middle of `compress`."""
    write_tiny_model(model_root / "larger", blocks=BLOCKS, hidden_size=192)
    return Recipe.model_validate({**tiny, "model": "local:larger"})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


def finished_parts(settings: Settings, job: Job) -> int:
    return len(list((settings.work_dir / job.id).glob("*/compress/part-*.safetensors.record.json")))


def last_trained(settings: Settings, job: Job) -> int:
    """The step up to which the training of a job is kept; 0 where none is."""
    kept = (settings.work_dir / job.id).glob("*/training/*.safetensors.record.json")
    return max((int(path.name.partition(".")[0].rpartition("-")[2]) for path in kept), default=0)


def weights(settings: Settings, service: JobService, job: Job) -> dict[str, str]:
    return {a.file.name: a.file.sha256 for a in service.artifacts(job.id) if a.file.name.endswith(".safetensors")}


def test_a_killed_worker_is_replaced_by_one_that_goes_on_from_the_last_finished_block_to_the_same_bytes(
    service: JobService, settings: Settings, larger: Recipe, log: Path
) -> None:
    disturbed = service.submit(larger)
    with worker(settings, log) as first:
        wait_for(lambda: finished_parts(settings, disturbed) >= 3)
        first.kill()
        first.wait()
        wait_for(lambda: not processes_of(settings.work_dir))
    finished = finished_parts(settings, disturbed)
    assert 2 <= finished <= BLOCKS
    undisturbed = service.submit(larger)
    with worker(settings, log):
        disturbed, undisturbed = (wait_until_ended(service, job.id) for job in (disturbed, undisturbed))
    assert (disturbed.state, undisturbed.state) == (State.SUCCEEDED, State.SUCCEEDED), disturbed.error
    assert [attempt.outcome for attempt in disturbed.attempts] == ["lost", "succeeded"]
    resumed = disturbed.attempts[1].resumed
    assert resumed is not None
    assert (resumed.stage, resumed.block) == ("compress", finished - 1)
    assert weights(settings, service, disturbed) == weights(settings, service, undisturbed)


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.full)])
def test_a_killed_child_costs_an_attempt_and_not_the_worker_and_its_training_ends_with_the_same_bytes(
    service: JobService, settings: Settings, tiny: dict[str, Any], log: Path, times: int
) -> None:
    service.settings = patient = settings.model_copy(update={"max_attempts": times + 1})
    distillation = {"datasets": ["local:calibration.txt"], "tokens": 120 * 128, "length": 64, "batch_size": 2}
    recipe = Recipe.model_validate({**tiny, "distillation": distillation})
    disturbed = service.submit(recipe)
    with worker(patient, log) as process:
        for killed in range(times):
            step = last_trained(settings, disturbed)
            wait_for(lambda before=step: last_trained(settings, disturbed) > before)
            (child,) = wait_for(lambda: processes_of(settings.work_dir / disturbed.id))
            os.kill(child, signal.SIGKILL)
            wait_for(lambda count=killed: service.get(disturbed.id).attempts[count].outcome == "lost")
        disturbed = wait_until_ended(service, disturbed.id)
        undisturbed = wait_until_ended(service, service.submit(recipe).id)
        assert process.poll() is None
    assert (disturbed.state, undisturbed.state) == (State.SUCCEEDED, State.SUCCEEDED), disturbed.error
    resumed = [attempt.resumed and attempt.resumed.stage for attempt in disturbed.attempts]
    assert resumed == [None, *times * ["distill"]]
    assert weights(settings, service, disturbed) == weights(settings, service, undisturbed)


def test_a_worker_that_is_told_to_end_hands_its_job_back_unharmed(
    service: JobService, settings: Settings, tiny: dict[str, Any], log: Path, children: Put
) -> None:
    once = settings.model_copy(update={"max_attempts": 1})
    service.settings = once
    job = service.submit(Recipe.model_validate(tiny))
    with worker(once, log, children(HANGS_ONCE)) as first:
        running = begun(settings.work_dir, job.id)
        first.terminate()
        assert first.wait(PATIENCE_SECONDS) == 0
    handed_back = service.get(job.id)
    assert handed_back.state is State.QUEUED
    assert [attempt.outcome for attempt in handed_back.attempts] == ["released"]
    assert (running / BEGUN).exists()
    assert not processes_of(settings.work_dir)
    with service.sessions.begin() as session:
        assert store.claim(session, job.id, "another", 60.0) is not None


def test_a_frozen_worker_that_wakes_up_after_its_lease_writes_nothing(
    service: JobService, settings: Settings, tiny: dict[str, Any], log: Path, children: Put
) -> None:
    job = service.submit(Recipe.model_validate(tiny))
    programs = children(HANGS_ONCE)
    with worker(settings, log, programs) as frozen:
        begun(settings.work_dir, job.id)
        frozen.send_signal(signal.SIGSTOP)
        with worker(settings, log, programs):
            ended = wait_until_ended(service, job.id)
            frozen.send_signal(signal.SIGCONT)
            wait_for(lambda: '"outcome": "lost"' in log.read_text())
            wait_for(lambda: not processes_of(settings.work_dir))
    assert ended.state is State.SUCCEEDED
    assert service.get(job.id).attempt == ended.attempt == 2
    assert {artifact.attempt for artifact in service.artifacts(job.id)} == {2}


def test_a_running_job_is_cancelled_within_seconds_and_leaves_nothing(
    service: JobService, settings: Settings, tiny: dict[str, Any], log: Path, children: Put
) -> None:
    job = service.submit(Recipe.model_validate(tiny))
    with worker(settings, log, children(HANGS_ONCE)):
        begun(settings.work_dir, job.id)
        assert service.cancel(job.id).state is State.CANCELLING
        wait_for(lambda: service.get(job.id).state is State.CANCELLED)
        wait_for(lambda: not (settings.work_dir / job.id).exists())
        assert not processes_of(settings.work_dir)
    assert service.artifacts(job.id) == ()
    assert job.id not in {stored for stored, _ in open_storage(settings.artifacts_url).attempts()}
