"""What becomes of an attempt that ended for want of something: room on a disk, memory, an answer of the database.

As in `store.py`, a function takes a session and never commits, and each move of a job is one conditional UPDATE.
"""

from datetime import datetime

from sqlalchemy import ColumnElement, and_, case, select, update
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.jobs import store
from app.jobs.models import AttemptRow, JobRow
from app.jobs.states import ENDED, LEASED, Event
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import AttemptOutcome, Failure

SOUND_SECONDS = 600.0
"""An attempt that has computed for this long shows that the outage before it is over: a job that has to wait again may
wait for as long as it could the first time."""


def waiting_since() -> ColumnElement[datetime]:
    """Return since when a job has been waiting, if it waits now."""
    still = and_(JobRow.waiting_since.is_not(None), JobRow.running_at > clock() - seconds(SOUND_SECONDS))
    return case((still, JobRow.waiting_since), else_=clock())


def postpone(
    session: Session, job_id: str, attempt: int, failure: Failure, delay_seconds: float, patience_seconds: float
) -> bool:
    """Queue the job again after an outage, and charge nothing for it; fail it once that lasts for too long.

    `detail` says meanwhile what the job waits for.
    """
    postponed = store.settle(
        session,
        Event.RELEASE,
        job_id,
        attempt,
        AttemptOutcome.RELEASED,
        waiting_since() > clock() - seconds(patience_seconds),
        attempts_left=JobRow.attempts_left + 1,
        run_after=clock() + seconds(delay_seconds),
        seconds_left=None,
        detail=f"waits, since {failure.message}",
        waiting_since=waiting_since(),
    )
    return postponed or store.fail(session, job_id, attempt, failure)


def spare(session: Session, job_id: str, attempt: int, failure: Failure) -> bool:
    """Queue a job that ran out of memory once more, to be computed with less of it; fail it where it was already."""
    spared = store.settle(
        session,
        Event.RETRY,
        job_id,
        attempt,
        AttemptOutcome.LOST,
        JobRow.sparing.is_(False),
        sparing=True,
        attempts_left=case((JobRow.attempts_left > 0, JobRow.attempts_left), else_=1),
        run_after=clock(),
        seconds_left=None,
    )
    return spared or store.fail(session, job_id, attempt, failure)


def forgive(session: Session, job_id: str, attempt: int) -> bool:
    """Give back an attempt that was taken from a worker which turned out to be alive: it counts for nothing.

    Returns False, and changes nothing, where the attempt was not taken or has been given back before.
    """
    taken = session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job_id, AttemptRow.number == attempt, AttemptRow.outcome == AttemptOutcome.LOST)
        .values(outcome=AttemptOutcome.RELEASED)
        .returning(AttemptRow.number)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if taken is None:
        return False
    session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.not_in(ENDED))
        .values(attempts_left=JobRow.attempts_left + 1)
        .execution_options(synchronize_session=False)
    )
    return True


def disown(session: Session, worker: str) -> bool:
    """Hand back a job that this worker may have claimed without having heard so; the attempt is not counted."""
    row = session.execute(
        select(JobRow.id, JobRow.attempt).where(JobRow.worker == worker, JobRow.state.in_(LEASED))
    ).one_or_none()
    return row is not None and (store.stop(session, row.id, row.attempt) or store.release(session, row.id, row.attempt))


def conclude(session: Session, job_id: str, failure: Failure, delay_seconds: float, patience_seconds: float) -> bool:
    """End an attempt that has failed: the job waits, is tried again, or has failed as well.

    Returns False where the attempt no longer holds the job.
    """
    code = FailureCode(failure.code)
    if code.kind.waits:
        return postpone(session, job_id, failure.attempt, failure, delay_seconds, patience_seconds)
    if code is FailureCode.OUT_OF_MEMORY:
        return spare(session, job_id, failure.attempt, failure)
    if failure.retryable:
        return store.retry_or_fail(session, job_id, failure.attempt, failure, delay_seconds)
    return store.fail(session, job_id, failure.attempt, failure)
