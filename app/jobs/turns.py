"""Whose turn it is: which job a worker computes next, and how long a job has to wait.

Teams take turns, whatever each has waiting; within a team, a higher priority goes first, then the older job.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, aliased

from app.clock import clock, seconds
from app.jobs import store
from app.jobs.models import AttemptRow, JobRow
from app.jobs.roster import serving, serving_column
from app.jobs.states import LEASED
from app.jobs.store import Claim
from app.keys.models import TeamRow
from modelpress.contract.job import State, Waiting

MAX_RING_SECONDS = 300.0


@dataclass(frozen=True)
class Glance:
    """The few columns of a job that tell whether an answer about it is still true."""

    owner: str
    state: str
    version: str
    """Another one whenever anything that is shown of the job has changed."""
    waiting: Waiting | None
    """How the job waits; None if it does not."""


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


def glance(session: Session, job_id: str) -> Glance | None:
    """Return what tells whether a job looks as it did, in one statement; None where there is no such job."""
    row = session.connection().execute(GLANCE, {"job_id": job_id}).one_or_none()
    return None if row is None else as_glance(*row)


def as_glance(
    owner: str, state: str, changed: str, attempts: str | None, ahead: int | None, workers: int | None
) -> Glance:
    """Return the glance of a row that GLANCE finds."""
    waiting = None if ahead is None else Waiting(position=1 + ahead, workers=workers or 0)
    return Glance(owner=owner, state=state, version=f"{changed} {attempts} {ahead} {workers}", waiting=waiting)


def glancing() -> Select[Any]:
    """Return the statement of `glance`."""
    other = aliased(JobRow)
    ahead = select(func.count()).where(
        other.owner == JobRow.owner,
        other.state == State.QUEUED,
        or_(other.device.is_(None), other.device == JobRow.device),
        or_(
            other.priority > JobRow.priority,
            and_(
                other.priority == JobRow.priority,
                tuple_(other.created_at, other.id) < tuple_(JobRow.created_at, JobRow.id),
            ),
        ),
    )
    changed: ColumnElement[str] = literal_column("attempts.xmin::text")
    comma: ColumnElement[str] = literal_column("','")
    attempts = select(func.string_agg(changed, aggregate_order_by(comma, AttemptRow.number))).where(
        AttemptRow.job_id == JobRow.id
    )
    waits = JobRow.state == State.QUEUED
    return select(
        JobRow.owner,
        JobRow.state,
        literal_column("jobs.xmin::text").label("changed"),
        attempts.scalar_subquery().label("attempts"),
        case((waits, ahead.scalar_subquery())).label("ahead"),
        case((waits, serving_column(JobRow.device).scalar_subquery())).label("workers"),
    ).where(JobRow.id == bindparam("job_id"))


GLANCE = glancing()


def unserved(session: Session, team: str) -> dict[str | None, int]:
    """Return how many jobs of a team wait for a device that no worker serves, by device; None is any device."""
    waiting = select(JobRow.device, func.count()).where(JobRow.owner == team, JobRow.state == State.QUEUED)
    return {
        device: count
        for device, count in session.execute(waiting.group_by(JobRow.device))
        if serving(session, device) == 0
    }
