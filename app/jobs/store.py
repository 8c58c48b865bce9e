"""Every statement that moves a job from one state to another, with its attempts and artifacts.

Each function takes a session and never commits: the caller owns the transaction. Each move of a job is one conditional
UPDATE whose condition comes from the table in `states.py`; a worker's statement also names the attempt it claimed, so a
worker that has lost its lease changes nothing. Only the database's clock counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sql
from pydantic import ValidationError
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.jobs import events, quotas
from app.jobs.events import Happening
from app.jobs.models import ArtifactRow, AttemptRow, DeletionRow, JobRow
from app.jobs.states import LEASED, TRANSITIONS, Event, destination, origins
from app.storage import StoredFile
from modelpress.contract.job import AttemptOutcome, Comparison, Failure, Resumed, Source, State, SweepResult
from modelpress.contract.recipe import Recipe

MAX_DOUBLINGS = 16
MAX_RETRY_DELAY_SECONDS = 300.0


@dataclass(frozen=True)
class Claim:
    """The right to compute a job, until the lease ends."""

    job_id: str
    attempt: int
    recipe: Recipe
    source: Source
    sparing: bool = False
    """Whether an earlier attempt ran out of memory."""
    retry_of: str | None = None
    """The job whose work this one goes on with."""
    request_id: str | None = None
    """The request that posted the job."""


class NotUnderstood(Exception):
    """Raised with the id of a job that this version of the service cannot compute."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


@dataclass(frozen=True)
class Progress:
    stage: str
    fraction: float
    detail: str | None = None
    seconds_left: float | None = None
    stage_seconds_left: float = 0.0
    """How many of them are left of this stage."""

    def after(self, seconds: float) -> "Progress":
        """Return what is left so much later, if nothing was heard meanwhile: the stages that follow take their time."""
        if self.seconds_left is None:
            return self
        passed = min(seconds, self.stage_seconds_left)
        return replace(
            self, seconds_left=self.seconds_left - passed, stage_seconds_left=self.stage_seconds_left - passed
        )


def get(session: Session, job_id: str) -> JobRow | None:
    return session.get(JobRow, job_id)


def attempts(session: Session, job_ids: Sequence[str]) -> Sequence[AttemptRow]:
    query = select(AttemptRow).where(AttemptRow.job_id.in_(job_ids)).order_by(AttemptRow.job_id, AttemptRow.number)
    return session.scalars(query).all()


def artifacts(session: Session, job_id: str) -> Sequence[ArtifactRow]:
    return session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)).all()


def claim(session: Session, job_id: str, worker: str, lease_seconds: float, device: str | None = None) -> Claim | None:
    """Take a queued job that is due, if its team may have it computed now. Exactly one of all claimants gets it.

    Raises:
        NotUnderstood: a newer version of the service has posted it. Roll back, and leave it to workers of that version.
    """
    if not quotas.may_run(session, job_id):
        return None
    row = session.execute(
        moved(Event.CLAIM, job_id)
        .where(JobRow.run_after <= clock())
        .values(
            state=State.RUNNING,
            running_at=clock(),
            attempt=JobRow.attempt + 1,
            attempts_left=JobRow.attempts_left - 1,
            worker=worker,
            lease_until=clock() + seconds(lease_seconds),
        )
        .returning(JobRow.attempt, JobRow.recipe, JobRow.source, JobRow.sparing, JobRow.retry_of, JobRow.request_id)
    ).one_or_none()
    if row is None:
        return None
    session.execute(
        insert(AttemptRow).values(job_id=job_id, number=row.attempt, worker=worker, device=device, started_at=clock())
    )
    events.write(session, job_id, row.attempt, events.entered(State.RUNNING, worker=worker))
    try:
        recipe, source = Recipe.model_validate(row.recipe), Source.model_validate(row.source)
    except ValidationError as error:
        raise NotUnderstood(job_id) from error
    return Claim(job_id, row.attempt, recipe, source, row.sparing, row.retry_of, row.request_id)


def beat(
    session: Session,
    job_id: str,
    attempt: int,
    lease_seconds: float,
    progress: Progress | None = None,
    happenings: Sequence[Happening] = (),
) -> State | None:
    """Renew the lease, report progress, and write down what has happened since the last beat.

    Returns the job's state, `cancelling` when the worker has to stop, or None when the lease is lost and the worker has
    to stop without another word.
    """
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state.in_(LEASED))
        .values(lease_until=clock() + seconds(lease_seconds))
        .returning(JobRow.state)
    )
    if progress is not None:
        statement = statement.values(
            stage=progress.stage,
            progress=func.greatest(JobRow.progress, progress.fraction),
            detail=progress.detail,
            seconds_left=progress.seconds_left,
        )
    state = session.execute(statement).scalar_one_or_none()
    if state is None:
        return None
    events.write(session, job_id, attempt, *happenings)
    return State(state)


def note_resumed(session: Session, job_id: str, attempt: int, resumed: Resumed) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job_id, AttemptRow.number == attempt, AttemptRow.ended_at.is_(None))
        .values(resumed=resumed.model_dump(mode="json"))
    )


def finish(
    session: Session,
    job_id: str,
    attempt: int,
    achieved_ratio: float,
    metrics: Comparison,
    files: Sequence[StoredFile],
    failure: Failure | None = None,
    sweep: Sequence[SweepResult] = (),
) -> bool:
    """Make the result of this attempt the job's result. False when the attempt no longer holds the job.

    With a `failure` the job has failed, although it has this result.
    """
    ended = {} if failure is None else {"error": failure.model_dump(mode="json")}
    done = settle(
        session,
        Event.SUCCEED if failure is None else Event.FAIL,
        job_id,
        attempt,
        AttemptOutcome.SUCCEEDED if failure is None else AttemptOutcome.FAILED,
        progress=1.0,
        detail=None,
        seconds_left=None,
        achieved_ratio=achieved_ratio,
        metrics=metrics.model_dump(mode="json"),
        sweep=[result.model_dump(mode="json") for result in sweep],
        **ended,
    )
    if done:
        rows = [
            {
                "job_id": job_id,
                "attempt": attempt,
                "name": file.name,
                "bytes": file.bytes,
                "sha256": file.sha256,
                "media_type": file.media_type,
            }
            for file in files
        ]
        session.execute(insert(ArtifactRow), rows)
    return done


def fail(session: Session, job_id: str, attempt: int, failure: Failure) -> bool:
    return settle(
        session,
        Event.FAIL,
        job_id,
        attempt,
        AttemptOutcome.FAILED,
        seconds_left=None,
        error=failure.model_dump(mode="json"),
    )


def retry_or_fail(session: Session, job_id: str, attempt: int, failure: Failure, delay_seconds: float) -> bool:
    """After a passing fault: queue the job again while attempts are left, otherwise fail it."""
    retried = settle(
        session,
        Event.RETRY,
        job_id,
        attempt,
        AttemptOutcome.LOST,
        JobRow.attempts_left > 0,
        run_after=clock() + seconds(delay_seconds),
        seconds_left=None,
    )
    return retried or fail(session, job_id, attempt, failure)


def release(session: Session, job_id: str, attempt: int) -> bool:
    """Hand the job back unharmed; the attempt is not counted against it."""
    return settle(
        session,
        Event.RELEASE,
        job_id,
        attempt,
        AttemptOutcome.RELEASED,
        attempts_left=JobRow.attempts_left + 1,
        run_after=clock(),
        seconds_left=None,
    )


def stop(session: Session, job_id: str, attempt: int) -> bool:
    """Write that the computation of a job that is being cancelled has ended."""
    return settle(session, Event.STOP, job_id, attempt, AttemptOutcome.CANCELLED, seconds_left=None)


def cancel(session: Session, job_id: str) -> State | None:
    """Cancel a job that waits, or ask for the end of one that runs.

    Returns the state that the job now has, or None when it does not exist or has ended otherwise.
    """
    found = session.scalar(select(JobRow.state).where(JobRow.id == job_id).with_for_update())
    if found == State.CANCELLED:
        return State.CANCELLED
    before = None if found is None else State(found)
    after = None if before is None else TRANSITIONS.get((before, Event.CANCEL))
    if after is not None and after is not before:
        moving = moved(Event.CANCEL, job_id).values(state=after, **{f"{after}_at": clock()})
        attempt = session.execute(moving.returning(JobRow.attempt)).scalar_one()
        events.write(session, job_id, attempt, events.entered(after))
    return after


def delete(session: Session, job_id: str) -> None:
    """Delete a job; its files are to be deleted by whoever sees the note about it."""
    session.execute(insert(DeletionRow).values(job_id=job_id, deleted_at=clock()).on_conflict_do_nothing())
    session.execute(sql.delete(JobRow).where(JobRow.id == job_id).execution_options(synchronize_session=False))


def has_finished(session: Session, job_id: str, attempt: int) -> bool:
    """Return whether this attempt's result is the job's, also where the answer to `finish` was lost."""
    found = select(ArtifactRow.name).where(ArtifactRow.job_id == job_id, ArtifactRow.attempt == attempt).limit(1)
    return session.scalar(found) is not None


def lock(session: Session, job_id: str) -> None:
    """Nobody else moves the job until the transaction ends, so several attempts to move it see one state."""
    session.execute(select(JobRow.id).where(JobRow.id == job_id).with_for_update())


def retry_delay(first_seconds: float, attempt: int) -> float:
    """Doubled with each attempt, up to a bound."""
    return min(first_seconds * 2.0 ** min(attempt - 1, MAX_DOUBLINGS), MAX_RETRY_DELAY_SECONDS)


def moved(event: Event, job_id: str) -> Any:
    """Return the UPDATE of one job by `event`, on the condition that the table of transitions allows it."""
    return (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.in_(origins(event)))
        .execution_options(synchronize_session=False)
    )


def settle(
    session: Session,
    event: Event,
    job_id: str,
    attempt: int,
    outcome: AttemptOutcome,
    *conditions: ColumnElement[bool],
    **values: Any,
) -> bool:
    """End an attempt by `event`: the job leaves its leased state, the attempt is recorded as ended."""
    state = destination(event)
    settled = session.execute(
        moved(event, job_id)
        .where(JobRow.attempt == attempt, *conditions)
        .values(state=state, lease_until=None, **{f"{state}_at": clock()}, **values)
        .returning(JobRow.id)
    ).scalar_one_or_none()
    if settled is None:
        return False
    error = values.get("error") or {}
    told = {name: error[name] for name in ("code", "message") if name in error}
    events.write(session, job_id, attempt, events.entered(state, outcome=outcome, **told))
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job_id, AttemptRow.number == attempt)
        .values(ended_at=clock(), outcome=outcome)
        .execution_options(synchronize_session=False)
    )
    return True
