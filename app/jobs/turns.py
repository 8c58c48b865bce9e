"""Whose turn it is: which job a worker computes next, and how long a job has to wait.

Teams take turns, whatever each has waiting; within a team, a higher priority goes first, then the older job.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.jobs import store
from app.jobs.models import JobRow
from app.jobs.roster import serving
from app.jobs.states import LEASED
from app.jobs.store import Claim
from app.keys.models import TeamRow
from modelpress.contract.job import State, Waiting

MAX_RING_SECONDS = 300.0


def claim_next(
    session: Session, worker: str, labels: Sequence[str], lease_seconds: float, but: Collection[str] = ()
) -> Claim | None:
    """Take the job whose turn it is on a worker with these labels, none of `but`; None where there is none.

    Raises:
        NotUnderstood: only a newer version of the service can compute it. Roll back, and ask again without it.
    """
    job_id = next_job(session, labels, but)
    device = labels[0] if labels else None
    claim = None if job_id is None else store.claim(session, job_id, worker, lease_seconds, device)
    if claim is not None:
        team = select(JobRow.owner).where(JobRow.id == claim.job_id).scalar_subquery()
        session.execute(update(TeamRow).where(TeamRow.name == team).values(claimed_at=clock()))
    return claim


def next_job(session: Session, labels: Sequence[str], but: Collection[str] = ()) -> str | None:
    """Return the due job whose turn it is, which no other worker takes until the transaction ends."""
    due = and_(JobRow.state == State.QUEUED, JobRow.run_after <= clock(), runs_on(labels), JobRow.id.not_in(but))
    running = select(func.count()).where(JobRow.owner == TeamRow.name, JobRow.state.in_(LEASED)).scalar_subquery()
    teams = session.scalars(
        select(TeamRow.name)
        .where(
            exists().where(JobRow.owner == TeamRow.name, due),
            or_(TeamRow.max_running.is_(None), running < TeamRow.max_running),
        )
        .order_by(TeamRow.claimed_at.asc().nulls_first(), TeamRow.name)
    ).all()
    for team in teams:
        job_id = session.scalar(
            in_turn(select(JobRow.id).where(JobRow.owner == team, due)).limit(1).with_for_update(skip_locked=True)
        )
        if job_id is not None:
            return job_id
    return None


def due_to_ring(session: Session, older_than_seconds: float, batch: int = 1000) -> list[tuple[str, str | None]]:
    """Return id and device of queued jobs that are due and were last rung for long ago; mark them as rung now."""
    unheard = (
        select(JobRow.id)
        .where(
            JobRow.state == State.QUEUED,
            JobRow.run_after <= clock(),
            func.greatest(JobRow.rung_at, JobRow.queued_at) < clock() - seconds(older_than_seconds),
            # Ever less often, up to a bound: else a long queue would fill the broker with messages.
            clock() - JobRow.rung_at > func.least(JobRow.rung_at - JobRow.queued_at, seconds(MAX_RING_SECONDS)),
        )
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    rung = update(JobRow).where(JobRow.id.in_(unheard)).values(rung_at=clock())
    return [(row.id, row.device) for row in session.execute(rung.returning(JobRow.id, JobRow.device))]


def runs_on(labels: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition that a job may run on a worker with these labels."""
    return or_(JobRow.device.is_(None), JobRow.device.in_(labels))


def in_turn(query: Select[str]) -> Select[str]:
    """Return the query with a team's jobs in the order in which they are computed."""
    return query.order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)


def waiting(session: Session, row: JobRow) -> Waiting | None:
    """Return how a job waits; None if it does not."""
    if row.state != State.QUEUED:
        return None
    same = JobRow.device.is_(None) if row.device is None else or_(JobRow.device.is_(None), JobRow.device == row.device)
    older = and_(
        JobRow.priority == row.priority,
        or_(JobRow.created_at < row.created_at, and_(JobRow.created_at == row.created_at, JobRow.id < row.id)),
    )
    ahead = select(func.count()).where(
        JobRow.owner == row.owner, JobRow.state == State.QUEUED, same, or_(JobRow.priority > row.priority, older)
    )
    return Waiting(position=1 + (session.scalar(ahead) or 0), workers=serving(session, row.device))
