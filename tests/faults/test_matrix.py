"""Faults of servers, disks, clocks and clients that meet a job in the middle of its life."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from app.db import Sessions
from app.jobs import store
from app.jobs.events import Happening
from app.jobs.service import JobService
from app.jobs.store import Claim
from app.settings import ServerSettings
from app.storage import directory
from modelpress.contract.event import EventKind
from modelpress.contract.job import AttemptOutcome, State
from modelpress.contract.recipe import Recipe
from tests.support.api import api
from tests.support.children import CRASHES, FINISHES, HANGS, Put, enters
from tests.support.doorbell import SilentDoorbell
from tests.support.processes import processes_of
from tests.support.results import COMPARISON, FILES
from tests.support.supervising import supervisor_of
from tests.support.unreliable import Unreliable
from tests.support.waiting import wait_for
from workers.lease import Lease
from workers.supervisor import Supervisor
from workers.sweeper import Sweeper

ROUNDS = 20


@pytest.fixture
def supervisor(quick: ServerSettings, sessions: Sessions) -> Supervisor:
    return supervisor_of(quick, sessions)


@pytest.fixture
def submit(service: JobService, tiny: dict[str, Any]) -> Any:
    """Posts the tiny job and returns its id."""
    return lambda **changes: service.submit(Recipe.model_validate({**tiny, **changes})).id


@contextmanager
def computing(supervisor: Supervisor) -> Iterator[None]:
    """Let a worker compute one job in a thread."""
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def claimed(sessions: Sessions, job_id: str) -> Claim:
    with sessions.begin() as session:
        found = store.claim(session, job_id, "worker", 3600.0)
    assert found is not None
    return found


def test_jobs_are_found_by_looking_though_every_message_is_lost(
    service: JobService, supervisor: Supervisor, submit: Any, children: Put
) -> None:
    children()
    jobs = [submit() for _ in range(3)]
    for _ in jobs:
        supervisor.look()
    assert [service.get(job_id).state for job_id in jobs] == [State.SUCCEEDED] * 3


def test_a_message_that_is_delivered_five_times_computes_once(
    service: JobService, supervisor: Supervisor, submit: Any, children: Put
) -> None:
    children()
    job_id = submit()
    assert [supervisor.run() for _ in range(5)] == [AttemptOutcome.SUCCEEDED, *[None] * 4]
    assert service.get(job_id).attempt == 1


@pytest.mark.parametrize("committed", [True, False])
def test_a_beat_whose_answer_was_lost_keeps_the_lease(
    service: JobService, sessions: Sessions, submit: Any, committed: bool
) -> None:
    unreliable: Any = Unreliable(sessions, committed=committed)
    with Lease(unreliable, claimed(sessions, submit()), 3600.0) as lease:
        lease.note(Happening(EventKind.LOG, {"line": "heard"}))
        wait_for(lambda: unreliable.failed)
        lease.wake.set()
        wait_for(lambda: lease.happenings.empty())
        assert not lease.must_stop


@pytest.mark.parametrize("committed", [True, False])
def test_a_post_whose_answer_was_lost_is_repeated_with_its_key_and_makes_one_job(
    settings: ServerSettings, engine: Engine, sessions: Sessions, tiny: dict[str, Any], committed: bool
) -> None:
    key = {"Idempotency-Key": "once"}
    with api(settings) as client:
        app: Any = client.app
        service = app.state.service
        app.state.service = service.of(service.caller)
        app.state.service.sessions = Unreliable(sessions, committed=committed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(service), "of", lambda self, caller: self)
            first = client.post("/jobs", json=tiny, headers=key)
            again = client.post("/jobs", json=tiny, headers=key)
        assert (first.status_code, again.status_code) == (503, 202)
        assert len(jobs_of(client)) == 1


def jobs_of(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/jobs").json()["jobs"]
    return found


def test_a_job_outlives_a_database_that_cuts_every_connection_again_and_again(
    service: JobService, supervisor: Supervisor, engine: Engine, submit: Any, children: Put
) -> None:
    children(f"time.sleep(2)\n{FINISHES}")
    job_id = submit()
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = user"
    over = threading.Event()

    def cut() -> None:
        while not over.wait(0.3):
            with suppress(OperationalError), engine.connect() as connection:
                connection.execute(text(query))

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        for _ in range(5):
            with suppress(OperationalError):  # of a claim, which is made again at the next bell
                supervisor.run()
    finally:
        over.set()
        cutting.join()
    supervisor.run()
    assert service.get(job_id).state is State.SUCCEEDED
    with service.sessions() as session:
        left = session.scalar(text("SELECT attempts_left FROM jobs"))
    assert left == service.settings.max_attempts - 1


@pytest.mark.parametrize("stage", ["fetch", "inspect", "compress", "distill", "verify"])
def test_a_worker_that_is_told_to_end_in_any_stage_hands_its_job_back_uncharged(
    service: JobService, supervisor: Supervisor, sessions: Sessions, submit: Any, children: Put, stage: str
) -> None:
    children(HANGS, enters_fetching()) if stage == "fetch" else children(enters(stage))
    job_id = submit()
    with computing(supervisor):
        wait_for(lambda: service.get(job_id).stage == stage)
        supervisor.stopping.set()
    job = service.get(job_id)
    assert (job.state, [attempt.outcome for attempt in job.attempts]) == (State.QUEUED, ["released"])
    assert not processes_of(service.settings.work_dir)
    with sessions() as session:
        assert session.scalar(text("SELECT attempts_left FROM jobs")) == service.settings.max_attempts


@pytest.mark.parametrize("stage", ["fetch", "inspect", "compress", "distill", "verify"])
def test_a_job_that_is_cancelled_in_any_stage_leaves_no_process_and_no_file(
    service: JobService, supervisor: Supervisor, submit: Any, children: Put, stage: str
) -> None:
    children(HANGS, enters_fetching()) if stage == "fetch" else children(enters(stage))
    job_id = submit()
    with computing(supervisor):
        wait_for(lambda: service.get(job_id).stage == stage)
        assert service.cancel(job_id).state is State.CANCELLING
    assert service.get(job_id).state is State.CANCELLED
    assert not processes_of(service.settings.work_dir)
    assert not (service.settings.work_dir / job_id).exists()


def enters_fetching() -> str:
    """Return the program of a child that reports that it fetches, and hangs."""
    report = {"event": "progress", "fraction": 0.5, "detail": "downloading"}
    return f"print(json.dumps({report!r}), flush=True); {HANGS}"


def test_a_cancellation_that_races_the_end_leaves_one_of_both(
    service: JobService, sessions: Sessions, submit: Any
) -> None:
    ends = set()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            claim = claimed(sessions, submit())
            together = threading.Barrier(2)

            def finish(claim: Claim = claim, together: threading.Barrier = together) -> bool:
                together.wait()
                with sessions.begin() as session:
                    return store.finish(session, claim.job_id, claim.attempt, 1.3, COMPARISON, FILES)

            def cancel(claim: Claim = claim, together: threading.Barrier = together) -> State | None:
                together.wait()
                with sessions.begin() as session:
                    return store.cancel(session, claim.job_id)

            finished, _ = pool.submit(finish), pool.submit(cancel)
            done = finished.result()
            with sessions.begin() as session:
                stopped = store.stop(session, claim.job_id, claim.attempt)
            job = service.get(claim.job_id)
            assert (job.state, stopped) == ((State.SUCCEEDED, False) if done else (State.CANCELLED, True))
            assert len(service.artifacts(claim.job_id)) == (len(FILES) if done else 0)
            ends.add(job.state)
    assert ends <= {State.SUCCEEDED, State.CANCELLED}


def test_a_job_that_crashes_every_process_fails_after_its_attempts_while_others_are_computed(
    service: JobService, supervisor: Supervisor, submit: Any, children: Put
) -> None:
    poison = "json.loads(sys.stdin.readline())['recipe']['metadata'].get('poison')"
    children(f"if {poison}: {CRASHES}\n{FINISHES}")
    supervisor.settings = supervisor.settings.model_copy(update={"retry_delay_seconds": 1.0})
    bad, good = submit(metadata={"poison": "yes"}), submit()
    while not (service.get(bad).state.has_ended and service.get(good).state.has_ended):
        supervisor.run()
    failed = service.get(bad)
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (State.FAILED, "compute_crashed")
    assert failed.attempt == service.settings.max_attempts
    assert service.get(good).state is State.SUCCEEDED


@pytest.mark.parametrize("step", ["describe", "write_manifest"])
def test_a_disk_that_is_full_while_the_result_is_stored_shows_nothing_of_it_and_the_job_waits(
    service: JobService, supervisor: Supervisor, submit: Any, children: Put, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    children()
    job_id = submit()
    monkeypatch.setattr(directory, step, full)
    supervisor.run()
    job = service.get(job_id)
    assert job.state is State.QUEUED
    assert "full" in (job.detail or "")
    assert not supervisor.storage.exists(job_id, 1, "model.safetensors")
    assert service.artifacts(job_id) == ()
    monkeypatch.undo()
    children()
    supervisor.run()
    assert service.get(job_id).state is State.SUCCEEDED


@pytest.mark.parametrize("hours", [5, -5])
def test_a_worker_whose_clock_is_hours_off_computes_as_any_other(
    service: JobService,
    supervisor: Supervisor,
    sessions: Sessions,
    submit: Any,
    children: Put,
    monkeypatch: pytest.MonkeyPatch,
    hours: int,
) -> None:
    children()
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + hours * 3600)
    job_id = submit()
    Sweeper(supervisor.settings, sessions, SilentDoorbell(), supervisor.storage, "id").reap()
    assert supervisor.run() is AttemptOutcome.SUCCEEDED
    job = service.get(job_id)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
