"""Whatever clients, workers, clocks and crashes do, in any order: the jobs in PostgreSQL are those of a model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db import Sessions
from app.jobs import outages, posting, reaper, store
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Failure, Source, State
from modelpress.contract.recipe import Recipe
from tests.support.results import COMPARISON, FILES

RECIPE = Recipe(model="local:tiny", target_ratio=1.5)
SOURCE = Source(reference="local:tiny", model_type="llama", parameters=1000)
ATTEMPTS = 3
LEASE_SECONDS = 3600.0
ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

older = st.integers(0, 2)
"""How many attempts ago a worker has claimed with which it speaks now; 0: it holds the job, if anybody does."""


@dataclass
class Expected:
    """The state of a job that the model expects."""

    state: State = State.QUEUED
    attempt: int = 0
    left: int = ATTEMPTS
    ends: list[State] = field(default_factory=list)

    def move(self, state: State) -> None:
        self.state = state
        if state in ENDED:
            self.ends.append(state)

    def holds(self, attempt: int) -> bool:
        return attempt == self.attempt and self.state in (State.RUNNING, State.CANCELLING)


class Jobs(RuleBasedStateMachine):
    jobs = Bundle("jobs")

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self.sessions = sessions
        self.expected: dict[str, Expected] = {}
        with sessions.begin() as session:
            session.execute(text("TRUNCATE jobs CASCADE"))

    def call(self, function: Callable[..., Any], *arguments: Any, committed: bool = True) -> Any:
        """Return what a statement returns; where it is not committed, the worker or the database has died before."""
        with self.sessions() as session:
            result = function(session, *arguments)
            if committed:
                session.commit()
        return result

    @rule(target=jobs)
    def submit(self) -> str:
        job_id = f"job_{len(self.expected)}"
        self.call(posting.submit, posting.NewJob(job_id, RECIPE, SOURCE, ATTEMPTS))
        self.expected[job_id] = Expected()
        return job_id

    @rule(job_id=jobs, committed=st.booleans())
    def claim(self, job_id: str, committed: bool) -> None:
        claimed = self.call(store.claim, job_id, "w", LEASE_SECONDS, committed=committed)
        job = self.expected[job_id]
        assert (claimed is not None) == (job.state is State.QUEUED)
        if claimed is not None and committed:
            job.attempt, job.left = job.attempt + 1, job.left - 1
            job.move(State.RUNNING)

    @rule(job_id=jobs, ago=older)
    def beat(self, job_id: str, ago: int) -> None:
        job = self.expected[job_id]
        attempt = job.attempt - ago
        found = self.call(store.beat, job_id, attempt, LEASE_SECONDS)
        assert found == (job.state if job.holds(attempt) else None)

    @rule(job_id=jobs, ago=older, committed=st.booleans())
    def finish(self, job_id: str, ago: int, committed: bool) -> None:
        job = self.expected[job_id]
        attempt = job.attempt - ago
        done = self.call(store.finish, job_id, attempt, 1.5, COMPARISON, FILES, committed=committed)
        assert done == (job.holds(attempt) and job.state is State.RUNNING)
        if done and committed:
            job.move(State.SUCCEEDED)

    @rule(job_id=jobs, ago=older, code=st.sampled_from(list(FailureCode)))
    def fail(self, job_id: str, ago: int, code: FailureCode) -> None:
        job = self.expected[job_id]
        attempt = job.attempt - ago
        failure = Failure.of(code, "it broke", attempt=attempt)
        held = job.holds(attempt) and job.state is State.RUNNING
        assert self.call(outages.conclude, job_id, failure, 0.0, 3600.0) == held
        if not held:
            return
        with self.sessions() as session:
            row = store.get(session, job_id)
            assert row is not None
            after = State(row.state)
        assert after in (State.QUEUED, State.FAILED)
        if code.kind.waits:
            assert after is State.QUEUED
            job.left += 1
        elif not code.kind.retryable and code is not FailureCode.OUT_OF_MEMORY:
            assert after is State.FAILED
        elif code is FailureCode.OUT_OF_MEMORY and after is State.QUEUED:
            job.left = max(job.left, 1)
        job.move(after)

    @rule(job_id=jobs, ago=older)
    def release(self, job_id: str, ago: int) -> None:
        job = self.expected[job_id]
        attempt = job.attempt - ago
        released = self.call(store.release, job_id, attempt)
        assert released == (job.holds(attempt) and job.state is State.RUNNING)
        if released:
            job.left += 1
            job.move(State.QUEUED)

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.expected[job_id]
        self.call(store.cancel, job_id)
        if job.state is State.QUEUED:
            job.move(State.CANCELLED)
        elif job.state is State.RUNNING:
            job.move(State.CANCELLING)

    @rule(job_id=jobs, ago=older)
    def stop(self, job_id: str, ago: int) -> None:
        job = self.expected[job_id]
        attempt = job.attempt - ago
        stopped = self.call(store.stop, job_id, attempt)
        assert stopped == (job.holds(attempt) and job.state is State.CANCELLING)
        if stopped:
            job.move(State.CANCELLED)

    @rule(job_id=jobs)
    def fall_silent(self, job_id: str) -> None:
        """The worker of the job dies, and its lease runs out."""
        self.call(shift, "lease_until", "-2 hours", job_id)
        reaped = {each.job_id for each in self.call(reaper.reap, 0.0)}
        job = self.expected[job_id]
        assert (job_id in reaped) == job.holds(job.attempt)
        if job.state is State.CANCELLING:
            job.move(State.CANCELLED)
        elif job.state is State.RUNNING:
            job.move(State.QUEUED if job.left else State.FAILED)

    @rule(hours=st.sampled_from([-1, 1]))
    def database_clock_jumps(self, hours: int) -> None:
        """Every moment that was written moves the other way; jobs that wait are due again at once."""
        for column in ("created_at", "queued_at", "rung_at", "running_at"):
            self.call(shift, column, f"{-hours} hours", None)

    @invariant()
    def agrees_with_the_model(self) -> None:
        with self.sessions() as session:
            for job_id, job in self.expected.items():
                row = store.get(session, job_id)
                assert row is not None
                assert (row.state, row.attempt, row.attempts_left) == (job.state, job.attempt, job.left)
                assert len(job.ends) <= 1
                assert bool(store.artifacts(session, job_id)) == (job.state is State.SUCCEEDED)
                attempts = store.attempts(session, [job_id])
                assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
                open_ones = [attempt.number for attempt in attempts if attempt.ended_at is None]
                assert open_ones == ([job.attempt] if job.holds(job.attempt) else [])


def shift(session: Session, column: str, interval: str, job_id: str | None) -> None:
    where = "" if job_id is None else "WHERE id = :id AND lease_until IS NOT NULL"
    statement = f"UPDATE jobs SET {column} = {column} + interval '{interval}' {where}"  # noqa: S608 - of constants
    session.execute(text(statement), {"id": job_id})


def test_any_history_of_jobs_is_that_of_the_model(sessions: Sessions) -> None:
    quick = settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: Jobs(sessions), settings=quick)
