"""What happens to jobs, written in the transaction in which it happens.

An event is written while its job's row is locked. So within a job, a greater id is never seen before a smaller one,
and whoever reads on behind the last id that was seen misses nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.clock import clock
from app.jobs.announcements import announce
from app.jobs.models import EventRow
from modelpress.contract.event import EventKind


@dataclass(frozen=True)
class Happening:
    """Something that is about to be written down."""

    kind: EventKind
    data: Mapping[str, Any]


def entered(state: str, **more: Any) -> Happening:
    """Return the event of a job that enters a state."""
    return Happening(EventKind.STATE, {"state": state, **more})


WRITE = insert(EventRow).values(
    job_id=bindparam("of_job"),
    attempt=bindparam("of_attempt"),
    kind=bindparam("of_kind"),
    data=bindparam("with_data"),
    at=clock(),
)
"""Made once: to make such a statement takes longer than to send it."""


def write(session: Session, job_id: str, attempt: int, *happenings: Happening) -> None:
    """Write events of a job whose row this transaction has locked, and whom they are to be told to."""
    if happenings:
        rows = [
            {"of_job": job_id, "of_attempt": attempt, "of_kind": each.kind, "with_data": dict(each.data)}
            for each in happenings
        ]
        session.connection().execute(WRITE, rows)
    for each in happenings:
        if each.kind is EventKind.STATE:
            announce(session, job_id, each.data["state"])


def behind(session: Session, job_id: str, after: int, limit: int, kind: EventKind | None = None) -> Sequence[EventRow]:
    """Return the first events of a job behind an id."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after).order_by(EventRow.id).limit(limit)
    if kind is not None:
        query = query.where(EventRow.kind == kind)
    return session.scalars(query).all()


def latest(session: Session, job_id: str, kinds: Collection[EventKind], limit: int) -> Sequence[EventRow]:
    """Return the last events of these kinds of a job, oldest first."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.kind.in_(kinds))
    return session.scalars(query.order_by(EventRow.id.desc()).limit(limit)).all()[::-1]


def newest(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """Return the id of the newest event of each of these jobs."""
    query = select(EventRow.job_id, func.max(EventRow.id).label("newest")).where(EventRow.job_id.in_(job_ids))
    return {row.job_id: row.newest for row in session.execute(query.group_by(EventRow.job_id))}
