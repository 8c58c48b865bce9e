"""A lease is renewed while the work goes on, and its end is noticed."""

import time
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from app.db import Sessions, make_engine, make_sessions
from app.jobs import reaper, store
from app.jobs.events import Happening
from app.jobs.service import JobService
from app.jobs.store import Claim, Progress
from modelpress.contract.event import EventKind
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe
from tests.support.waiting import wait_for
from workers.lease import Lease

LEASE_SECONDS = 3.0


@pytest.fixture
def claim(service: JobService, sessions: Sessions, tiny: dict[str, Any]) -> Claim:
    job = service.submit(Recipe.model_validate(tiny))
    with sessions.begin() as session:
        claimed = store.claim(session, job.id, "worker", LEASE_SECONDS)
    assert claimed is not None
    return claimed


def test_a_lease_outlives_its_seconds_while_it_is_kept(sessions: Sessions, claim: Claim) -> None:
    expiries = text("SELECT lease_until FROM jobs WHERE id = :id")
    with sessions() as session:
        first = session.scalar(expiries, {"id": claim.job_id})

    def renewed() -> bool:
        with sessions() as session:
            left = session.scalar(text("SELECT clock_timestamp() > :first"), {"first": first})
            return bool(left) and not reaper.reap(session, 0.0)

    with Lease(sessions, claim, LEASE_SECONDS) as lease:
        wait_for(renewed)
        assert not lease.must_stop


def test_a_new_stage_is_reported_at_once(service: JobService, sessions: Sessions, claim: Claim) -> None:
    with Lease(sessions, claim, 3600.0) as lease:
        lease.report(Progress("compress", 0.5, "block 2 of 3"))
        wait_for(lambda: service.get(claim.job_id).stage == "compress")
    assert service.get(claim.job_id).detail == "block 2 of 3"


def test_the_time_left_goes_on_while_a_stage_says_nothing_but_not_into_the_next_one(
    service: JobService, sessions: Sessions, claim: Claim
) -> None:
    lease = Lease(sessions, claim, 3600.0)
    lease.report(Progress("compress", 0.5, seconds_left=100.0, stage_seconds_left=40.0))
    for passed, left in ((0.0, 100.0), (30.0, 70.0), (500.0, 60.0)):
        lease.reported = time.monotonic() - passed
        lease.beat()
        assert service.get(claim.job_id).seconds_left == pytest.approx(left, abs=5.0)


def test_events_beyond_the_most_of_a_kind_are_left_out_and_the_job_says_so(
    sessions: Sessions, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.lease.MOST_OF_A_KIND", 2)
    with Lease(sessions, claim, 3600.0) as lease:
        for step in range(5):
            lease.note(Happening(EventKind.METRIC, {"step": step, "name": "loss", "value": 1.0}))
    with sessions() as session:
        of_kind = text("SELECT data FROM job_events WHERE job_id = :id AND kind = :kind ORDER BY id")
        metrics, logs = (
            list(session.scalars(of_kind, {"id": claim.job_id, "kind": kind})) for kind in ("metric", "log")
        )
    assert [metric["step"] for metric in metrics] == [0, 1]
    assert [log["line"] for log in logs] == ["From here on, events of the kind metric are left out: there are 2."]


def test_a_cancellation_ends_the_work(service: JobService, sessions: Sessions, claim: Claim) -> None:
    with Lease(sessions, claim, LEASE_SECONDS) as lease:
        service.cancel(claim.job_id)
        wait_for(lambda: lease.must_stop)
        assert lease.cancelled


def test_a_job_that_was_taken_away_ends_the_work(service: JobService, sessions: Sessions, claim: Claim) -> None:
    with sessions.begin() as session:
        store.release(session, claim.job_id, claim.attempt)
    with Lease(sessions, claim, LEASE_SECONDS) as lease:
        wait_for(lambda: lease.must_stop)
        assert not lease.cancelled
    assert service.get(claim.job_id).state is State.QUEUED


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_cannot_be_stored_costs_no_lease(service: JobService, sessions: Sessions, claim: Claim, text: str) -> None:
    with Lease(sessions, claim, LEASE_SECONDS) as lease:
        lease.note(Happening(EventKind.METRIC, {"name": text}))
        lease.report(Progress("compress", 0.5, text))
        lease.report(Progress("evaluate", 0.6))
        wait_for(lambda: service.get(claim.job_id).stage == "evaluate")
        assert lease.thread.is_alive()


def test_without_a_database_the_work_ends_when_the_lease_must_have_run_out(claim: Claim) -> None:
    gone = make_sessions(make_engine(SecretStr("postgresql://nobody@127.0.0.1:1/nothing")))
    with Lease(gone, claim, LEASE_SECONDS) as lease:
        assert not lease.must_stop
        wait_for(lambda: lease.must_stop)
        assert not lease.cancelled
