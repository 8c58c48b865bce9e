"""One repair, one test: what crashes leave behind."""

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.db import Sessions
from app.jobs import store
from app.jobs.installation import claim_files
from app.jobs.service import JobService
from app.settings import Settings
from app.sources.unused import lock_of
from app.storage.registry import open_storage
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
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
    storage = open_storage(settings.artifacts_url)
    return Sweeper(settings, sessions, doorbell, storage, claim_files(settings, sessions, storage))


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


def test_work_of_ended_jobs_is_deleted_and_of_others_kept(
    sweeper: Sweeper, service: JobService, settings: Settings, tiny: dict[str, Any], job_id: str
) -> None:
    waiting = service.submit(Recipe.model_validate(tiny)).id
    service.cancel(job_id)
    for name in (job_id, waiting, "job_unknown"):
        (settings.work_dir / name / "1").mkdir(parents=True)
    sweeper.collect_work()
    assert {path.name for path in settings.work_dir.iterdir()} == {waiting, "job_unknown"}


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
    assert set(sweeper.storage.attempts()) == {(job_id, 2), (running, 1), ("job_unknown", 1)}


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


@pytest.fixture
def of_nobody(sweeper: Sweeper, settings: Settings, tmp_path: Path) -> str:
    """Work and artifacts of a job that the database does not know, as after a dump of last night was restored."""
    (settings.work_dir / "job_newer" / "1").mkdir(parents=True)
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.safetensors").write_text("weights")
    sweeper.storage.publish("job_newer", 1, package)
    return "job_newer"


def test_files_of_a_job_that_the_database_does_not_know_stay_for_days(
    sweeper: Sweeper, settings: Settings, of_nobody: str
) -> None:
    for _ in range(2):
        sweeper.sweep()
    assert sweeper.storage.exists(of_nobody, 1, "model.safetensors")
    assert (settings.work_dir / of_nobody / "1").is_dir()


def test_files_that_nobody_has_known_for_days_are_moved_and_never_deleted(
    sweeper: Sweeper, settings: Settings, of_nobody: str, caplog: pytest.LogCaptureFixture
) -> None:
    sweeper.settings = settings.model_copy(update={"keep_unknown_seconds": 0.0})
    sweeper.sweep()
    assert sweeper.storage.attempts() == []
    assert [path.read_text() for path in settings.data_dir.rglob("model.safetensors")] == ["weights"]
    assert [path.name for path in settings.work_dir.iterdir()] == []
    assert [path.name for path in (settings.quarantine_dir / "work").glob("job_newer-*/*")] == ["1"]
    assert {"unknown_work_set_aside", "unknown_artifacts_set_aside"} <= {record.message for record in caplog.records}


def test_a_job_that_is_known_again_has_its_days_anew(sweeper: Sweeper, of_nobody: str) -> None:
    sightings = sweeper.artifacts_of_nobody
    sightings.older_than(3600, {of_nobody})
    os.utime(sightings.directory / of_nobody, (0, 0))
    sightings.older_than(3600, set())
    assert sightings.older_than(3600, {of_nobody}) == set()


def test_a_database_that_took_the_place_of_another_under_a_worker_decides_nothing(
    sweeper: Sweeper, settings: Settings, service: JobService, job_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    (settings.work_dir / job_id).mkdir(parents=True)
    service.cancel(job_id)
    sweeper.identity = "the one it was started on"
    sweeper.sweep()
    assert (settings.work_dir / job_id).is_dir()
    assert "database_changed" in {record.message for record in caplog.records}


def test_the_files_of_a_deleted_job_are_deleted(
    service: JobService, sweeper: Sweeper, settings: Settings, tiny: dict[str, Any], tmp_path: Path
) -> None:
    job_id = service.submit(Recipe.model_validate(tiny)).id
    service.cancel(job_id)
    service.delete(job_id)
    package = tmp_path / "package"
    package.mkdir()
    (package / "config.json").write_text("{}")
    storage = open_storage(settings.artifacts_url)
    storage.publish(job_id, 1, package)
    (settings.work_dir / job_id).mkdir(parents=True)

    sweeper.collect()

    assert storage.attempts() == []
    assert not (settings.work_dir / job_id).exists()


@pytest.fixture
def fetched(settings: Settings) -> Path:
    """A model as it is kept once it was fetched, used for the last time a day ago."""
    return keep(settings, "models/org--name/commit", 24 * 3600.0)


def keep(settings: Settings, name: str, age_seconds: float) -> Path:
    """Put something where it is kept, as if it had been used for the last time so long ago."""
    final = settings.sources_dir / name
    final.mkdir(parents=True)
    (final / "model.safetensors").write_bytes(b"weights")
    lock_of(final).touch()
    used = time.time() - age_seconds
    os.utime(final, (used, used))
    return final


def keeping(sweeper: Sweeper, seconds: float) -> Sweeper:
    sweeper.settings = sweeper.settings.model_copy(update={"keep_sources_seconds": seconds})
    return sweeper


@pytest.mark.parametrize(("seconds", "left"), [(2 * 24 * 3600.0, True), (3600.0, False)])
def test_what_was_fetched_is_deleted_when_it_was_not_used_for_long(
    sweeper: Sweeper, fetched: Path, seconds: float, left: bool
) -> None:
    keeping(sweeper, seconds).collect()
    assert fetched.exists() == left
    assert [path for path in fetched.parent.iterdir() if path.suffix != ".lock"] == [fetched] * left


def test_what_a_running_attempt_may_have_opened_is_kept(
    sweeper: Sweeper, sessions: Sessions, job_id: str, fetched: Path
) -> None:
    with sessions.begin() as session:
        store.claim(session, job_id, "worker", 60.0)
        session.execute(text("UPDATE jobs SET running_at = clock_timestamp() - interval '2 days'"))
    keeping(sweeper, 3600.0).collect()
    assert fetched.exists()


def test_what_is_being_fetched_is_kept_and_what_was_given_up_is_deleted(
    sweeper: Sweeper, settings: Settings, fetched: Path
) -> None:
    fetched.rename(fetched.with_name("commit.partial"))
    os.utime(fetched.with_name("commit.partial") / "model.safetensors", (0, 0))
    with lock_of(fetched).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keeping(sweeper, 3600.0).collect()
        assert fetched.with_name("commit.partial").exists()
    keeping(sweeper, 3600.0).collect()
    assert not fetched.with_name("commit.partial").exists()


def test_while_a_job_waits_for_the_disk_the_oldest_is_deleted_early(
    sweeper: Sweeper, settings: Settings, sessions: Sessions, job_id: str, fetched: Path
) -> None:
    younger = keep(settings, "models/org--name/newer", 12 * 3600.0)
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET waiting_since = clock_timestamp()"))
    sweeper.collect()
    assert (fetched.exists(), younger.exists()) == (False, True)
