"""One repair, one test: what crashes leave behind."""

from typing import Any

import pytest
from sqlalchemy import text

from app.contract.job import State
from app.contract.recipe import Recipe
from app.db import Sessions
from app.jobs import store
from app.jobs.service import JobService
from app.settings import Settings
from tests.conftest import SilentDoorbell
from workers.sweeper import SWEEP_LOCK, Sweeper


@pytest.fixture
def job_id(service: JobService, tiny: dict[str, Any], doorbell: SilentDoorbell) -> str:
    job = service.submit(Recipe.model_validate(tiny))
    doorbell.rung.clear()
    return job.id


@pytest.fixture
def sweeper(settings: Settings, sessions: Sessions, doorbell: SilentDoorbell) -> Sweeper:
    settings = settings.model_copy(update={"ring_again_seconds": 0.001, "keep_work_seconds": 0.0})
    return Sweeper(settings, sessions, doorbell)


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


def test_one_sweeper_at_a_time_does_a_round(
    sweeper: Sweeper, sessions: Sessions, doorbell: SilentDoorbell, job_id: str
) -> None:
    with sessions.begin() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SWEEP_LOCK})
        sweeper.sweep()
        assert doorbell.rung == []
    sweeper.sweep()
    assert doorbell.rung == [job_id]
