"""One repair, one test: what crashes leave behind."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.contract.job import State
from app.contract.recipe import Recipe
from app.db import Sessions
from app.jobs import store
from app.jobs.service import JobService
from app.settings import Settings
from app.storage.registry import open_storage
from tests.support.doorbell import SilentDoorbell
from tests.support.results import COMPARISON, FILES
from workers.sweeper import Sweeper


@pytest.fixture
def job_id(service: JobService, tiny: dict[str, Any], doorbell: SilentDoorbell) -> str:
    job = service.submit(Recipe.model_validate(tiny))
    doorbell.rung.clear()
    return job.id


@pytest.fixture
def sweeper(settings: Settings, sessions: Sessions, doorbell: SilentDoorbell) -> Sweeper:
    settings = settings.model_copy(update={"ring_again_seconds": 0.001, "keep_work_seconds": 0.0})
    return Sweeper(settings, sessions, doorbell, open_storage(settings.artifacts_url))


def expire(sessions: Sessions, job_id: str) -> None:
    with sessions.begin() as session:
        store.claim(session, job_id, "silent", 60.0)
        session.execute(
            text("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 second' WHERE id = :id"), {"id": job_id}
        )


def test_a_job_whose_worker_fell_silent_returns_to_the_queue(
    sweeper: Sweeper, service: JobService, sessions: Sessions, job_id: str
) -> None:
    expire(sessions, job_id)
    sweeper.reap()
    assert service.get(job_id).state is State.QUEUED


def test_a_job_that_nobody_heard_is_rung_again(sweeper: Sweeper, doorbell: SilentDoorbell, job_id: str) -> None:
    sweeper.ring_again()
    assert doorbell.rung == [job_id]


def test_work_of_ended_and_unknown_jobs_is_deleted_and_of_others_kept(
    sweeper: Sweeper, service: JobService, settings: Settings, tiny: dict[str, Any], job_id: str
) -> None:
    waiting = service.submit(Recipe.model_validate(tiny)).id
    service.cancel(job_id)
    for name in (job_id, waiting, "job_unknown"):
        (settings.work_dir / name / "1").mkdir(parents=True)
    sweeper.collect_work()
    assert [path.name for path in settings.work_dir.iterdir()] == [waiting]


def test_files_of_an_attempt_that_is_not_the_result_are_deleted_and_of_others_kept(
    sweeper: Sweeper, service: JobService, sessions: Sessions, tiny: dict[str, Any], job_id: str, tmp_path: Path
) -> None:
    running = service.submit(Recipe.model_validate(tiny)).id
    for job, attempt in ((job_id, 1), (job_id, 2), (running, 1), ("job_unknown", 1)):
        directory = tmp_path / f"{job}-{attempt}"
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        sweeper.storage.publish(job, attempt, directory)
    with sessions.begin() as session:
        store.claim(session, running, "worker", 60.0)
        store.claim(session, job_id, "worker", 60.0)
        store.release(session, job_id, 1)
        store.claim(session, job_id, "worker", 60.0)
        store.finish(session, job_id, 2, 1.3, COMPARISON, FILES)
    sweeper.collect_artifacts()
    assert set(sweeper.storage.attempts()) == {(job_id, 2), (running, 1)}


def test_a_repair_that_fails_does_not_keep_the_others_from_their_turn(
    sweeper: Sweeper, doorbell: SilentDoorbell, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(sweeper, "reap", fail)
    fail.__name__ = "reap"
    sweeper.sweep()
    assert doorbell.rung == [job_id]


@pytest.mark.parametrize(("minutes", "rung"), [(4, False), (6, True)])
def test_a_job_that_waits_for_long_is_rung_every_five_minutes(
    sweeper: Sweeper, sessions: Sessions, doorbell: SilentDoorbell, job_id: str, minutes: int, rung: bool
) -> None:
    with sessions.begin() as session:
        session.execute(
            text(
                "UPDATE jobs SET queued_at = clock_timestamp() - interval '2 hours', "
                "rung_at = clock_timestamp() - make_interval(mins => :minutes)"
            ),
            {"minutes": minutes},
        )
    sweeper.ring_again()
    assert bool(doorbell.rung) is rung
