"""Every statement on jobs, against a real PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.db import Sessions
from app.jobs import listing, ownership, posting, reaper, store, turns
from app.jobs.models import AttemptRow, JobRow
from app.jobs.service import JobService
from app.jobs.store import Progress
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import AttemptOutcome, Comparison, Failure, Resumed, Source, State, SweepResult
from modelpress.contract.recipe import Recipe
from tests.support.results import COMPARISON, FILES

RECIPE = Recipe(model="local:tiny", target_ratio=1.5)
SOURCE = Source(reference="local:tiny", model_type="llama", parameters=1000)
FAILURE = Failure.of(FailureCode.INTERNAL_ERROR, "it broke", attempt=1)


def submit(sessions: Sessions, job_id: str = "job_a", max_attempts: int = 3) -> str:
    with sessions.begin() as session:
        posting.submit(session, posting.NewJob(job_id, RECIPE, SOURCE, max_attempts))
    return job_id


def claim(sessions: Sessions, job_id: str, worker: str = "w1", lease_seconds: float = 60.0) -> store.Claim | None:
    with sessions.begin() as session:
        return store.claim(session, job_id, worker, lease_seconds)


def call(sessions: Sessions, function: Any, *arguments: Any) -> Any:
    with sessions.begin() as session:
        return function(session, *arguments)


def job(sessions: Sessions, job_id: str) -> JobRow:
    with sessions() as session:
        row = store.get(session, job_id)
        assert row is not None
        return row


def attempt(sessions: Sessions, job_id: str, number: int) -> AttemptRow:
    with sessions() as session:
        return store.attempts(session, [job_id])[number - 1]


def let_lease_expire(sessions: Sessions, job_id: str) -> None:
    past = text("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 second' WHERE id = :id")
    with sessions.begin() as session:
        session.execute(past, {"id": job_id})


def columns(row: JobRow) -> dict[str, object]:
    return {column.key: getattr(row, column.key) for column in JobRow.__table__.columns}


def test_a_claim_carries_what_was_submitted(sessions: Sessions) -> None:
    claimed = claim(sessions, submit(sessions))
    assert claimed == store.Claim("job_a", 1, RECIPE, SOURCE)


def test_of_twenty_claimants_exactly_one_gets_the_job(sessions: Sessions) -> None:
    job_id = submit(sessions)
    barrier = threading.Barrier(10)

    def contend(number: int) -> store.Claim | None:
        barrier.wait()
        return claim(sessions, job_id, f"worker-{number}")

    with ThreadPoolExecutor(10) as pool:
        claims = list(pool.map(contend, range(20)))
    assert sum(each is not None for each in claims) == 1
    assert job(sessions, job_id).attempt == 1


def test_a_job_that_is_not_due_is_not_claimed(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    call(sessions, store.retry_or_fail, job_id, 1, FAILURE, 60.0)
    assert claim(sessions, job_id) is None


def test_a_beat_renews_the_lease_and_keeps_the_progress(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id, lease_seconds=1.0)
    before = job(sessions, job_id)
    progress = Progress("compress", 0.4, "block 3 of 12", 60.0)
    assert call(sessions, store.beat, job_id, 1, 60.0, progress) is State.RUNNING
    after = job(sessions, job_id)
    assert before.lease_until is not None
    assert after.lease_until is not None
    assert after.lease_until > before.lease_until
    assert (after.stage, after.progress, after.detail, after.seconds_left) == ("compress", 0.4, "block 3 of 12", 60.0)


def test_a_beat_hears_of_a_cancellation(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    call(sessions, store.cancel, job_id)
    assert call(sessions, store.beat, job_id, 1, 60.0) is State.CANCELLING


def test_finish_publishes_the_result(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    assert call(sessions, store.finish, job_id, 1, 1.5, COMPARISON, FILES)
    row = job(sessions, job_id)
    assert (row.state, row.achieved_ratio, row.lease_until) == ("succeeded", 1.5, None)
    assert row.succeeded_at is not None
    assert Comparison.model_validate(row.metrics) == COMPARISON
    with sessions() as session:
        (artifact,) = store.artifacts(session, job_id)
    assert (artifact.name, artifact.sha256, artifact.attempt) == ("config.json", "ab" * 32, 1)
    assert attempt(sessions, job_id, 1).outcome == AttemptOutcome.SUCCEEDED


def test_a_sweep_is_kept_with_the_result_and_answered(service: JobService, sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    results = tuple(
        SweepResult(target_ratio=ratio, achieved_ratio=ratio, directory=str(ratio), method="svd", metrics=COMPARISON)
        for ratio in (1.5, 1.2)
    )
    assert service.get(job_id).sweep == ()
    assert call(sessions, store.finish, job_id, 1, 1.5, COMPARISON, FILES, None, results)
    assert service.get(job_id).sweep == results


def test_a_result_can_be_that_of_a_job_that_failed(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    assert not call(sessions, store.has_finished, job_id, 1)
    assert call(sessions, store.finish, job_id, 1, 1.5, COMPARISON, FILES, FAILURE)
    row = job(sessions, job_id)
    assert (row.state, row.achieved_ratio, row.progress) == ("failed", 1.5, 1.0)
    assert row.failed_at is not None
    assert Failure.model_validate(row.error) == FAILURE
    assert Comparison.model_validate(row.metrics) == COMPARISON
    assert attempt(sessions, job_id, 1).outcome == AttemptOutcome.FAILED
    assert call(sessions, store.has_finished, job_id, 1)
    with sessions() as session:
        assert len(store.artifacts(session, job_id)) == 1


@pytest.mark.parametrize("failure", [None, FAILURE])
def test_the_files_of_a_result_are_never_superseded(sessions: Sessions, failure: Failure | None) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    call(sessions, store.finish, job_id, 1, 1.5, COMPARISON, FILES, failure)
    assert call(sessions, ownership.superseded, [(job_id, 1), (job_id, 2)]) == [(job_id, 2)]


def stale_statements() -> list[Any]:
    return [
        pytest.param(lambda s: store.beat(s, "job_a", 1, 60.0), id="beat"),
        pytest.param(lambda s: store.finish(s, "job_a", 1, 1.5, COMPARISON, FILES), id="finish"),
        pytest.param(lambda s: store.fail(s, "job_a", 1, FAILURE), id="fail"),
        pytest.param(lambda s: store.retry_or_fail(s, "job_a", 1, FAILURE, 0.0), id="retry"),
        pytest.param(lambda s: store.release(s, "job_a", 1), id="release"),
        pytest.param(lambda s: store.stop(s, "job_a", 1), id="stop"),
    ]


@pytest.mark.parametrize("statement", stale_statements())
def test_an_attempt_that_lost_its_lease_changes_nothing(sessions: Sessions, statement: Any) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id, "frozen")
    let_lease_expire(sessions, job_id)
    call(sessions, reaper.reap, 0.0)
    second = claim(sessions, job_id, "second")
    assert second is not None
    assert second.attempt == 2
    before = columns(job(sessions, job_id))
    assert not call(sessions, statement)
    assert columns(job(sessions, job_id)) == before
    with sessions() as session:
        assert not store.artifacts(session, job_id)


def test_a_silent_worker_loses_its_job_to_the_queue(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    let_lease_expire(sessions, job_id)
    assert call(sessions, reaper.reap, 0.0) == [reaper.Reaped(job_id, State.QUEUED)]
    assert attempt(sessions, job_id, 1).outcome == AttemptOutcome.LOST


def test_a_live_lease_is_not_reaped(sessions: Sessions) -> None:
    claim(sessions, submit(sessions))
    assert call(sessions, reaper.reap, 0.0) == []


def test_a_job_that_kills_every_worker_fails_when_its_attempts_are_used_up(sessions: Sessions) -> None:
    job_id = submit(sessions, max_attempts=2)
    for expected in (State.QUEUED, State.FAILED):
        assert claim(sessions, job_id) is not None
        let_lease_expire(sessions, job_id)
        assert call(sessions, reaper.reap, 0.0) == [reaper.Reaped(job_id, expected)]
    error = job(sessions, job_id).error
    assert error is not None
    assert error["code"] == "worker_lost"


def test_a_silent_worker_of_a_cancelled_job_leaves_it_cancelled(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    call(sessions, store.cancel, job_id)
    let_lease_expire(sessions, job_id)
    assert call(sessions, reaper.reap, 0.0) == [reaper.Reaped(job_id, State.CANCELLED)]


def test_a_released_attempt_is_not_counted_against_the_job(sessions: Sessions) -> None:
    job_id = submit(sessions, max_attempts=1)
    claim(sessions, job_id)
    assert call(sessions, store.release, job_id, 1)
    second = claim(sessions, job_id)
    assert second is not None
    assert second.attempt == 2


def test_a_waiting_job_is_cancelled_at_once(sessions: Sessions) -> None:
    job_id = submit(sessions)
    assert call(sessions, store.cancel, job_id) is State.CANCELLED
    assert claim(sessions, job_id) is None


def test_a_job_that_is_being_cancelled_cannot_succeed(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    assert call(sessions, store.cancel, job_id) is State.CANCELLING
    assert not call(sessions, store.finish, job_id, 1, 1.5, COMPARISON, FILES)
    assert call(sessions, store.stop, job_id, 1)
    assert job(sessions, job_id).state == "cancelled"


def test_cancelling_twice_answers_the_same(sessions: Sessions) -> None:
    job_id = submit(sessions)
    assert [call(sessions, store.cancel, job_id) for _ in range(2)] == [State.CANCELLED] * 2


def test_a_succeeded_job_cannot_be_cancelled(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    call(sessions, store.finish, job_id, 1, 1.5, COMPARISON, FILES)
    assert call(sessions, store.cancel, job_id) is None
    assert job(sessions, job_id).state == "succeeded"


@pytest.mark.parametrize("state", ["queued", "running", "failed"])
def test_the_database_itself_refuses_to_reopen_an_ended_job(sessions: Sessions, state: str) -> None:
    job_id = submit(sessions)
    call(sessions, store.cancel, job_id)
    with pytest.raises(IntegrityError, match="has ended as cancelled"), sessions.begin() as session:
        session.execute(text("UPDATE jobs SET state = :state WHERE id = :id"), {"state": state, "id": job_id})


def test_only_jobs_that_nobody_heard_are_rung_again(sessions: Sessions) -> None:
    waiting, running = submit(sessions, "job_waiting"), submit(sessions, "job_running")
    claim(sessions, running)
    assert call(sessions, turns.due_to_ring, 60.0) == []
    assert call(sessions, turns.due_to_ring, 0.0) == [(waiting, None)]
    assert call(sessions, turns.due_to_ring, 60.0) == []


def test_pages_are_newest_first_and_meet_without_gap_or_overlap(sessions: Sessions) -> None:
    ids = [submit(sessions, f"job_{number}") for number in range(5)]
    with sessions() as session:
        first = listing.page(session, "default", listing.JobFilter(), None, 2)
        rest = listing.page(session, "default", listing.JobFilter(), (first[-1].created_at, first[-1].id), 10)
    assert [row.id for row in [*first, *rest]] == ids[::-1]


def test_an_attempt_remembers_where_it_went_on(sessions: Sessions) -> None:
    job_id = submit(sessions)
    claim(sessions, job_id)
    call(sessions, store.note_resumed, job_id, 1, Resumed(stage="compress", block=7))
    assert attempt(sessions, job_id, 1).resumed == {"stage": "compress", "block": 7}
