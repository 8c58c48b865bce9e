"""The one statement that keeps a new job, with all that is written down and asked when one is posted.

Every function takes a session and never commits.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, bindparam, exists, func, literal, or_, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from app.clock import clock
from app.deliveries.models import SubscriptionRow
from app.jobs import events, listing, roster
from app.jobs.announcements import announce
from app.jobs.models import EventRow, JobRow
from app.keys.callers import operator
from app.keys.models import DEFAULT_TEAM
from app.keys.store import RECORD, Entry
from modelpress.contract.job import Source, State, Waiting
from modelpress.contract.recipe import Recipe
from modelpress.contract.webhook import EventName


@dataclass(frozen=True)
class NewJob:
    """A job that is about to be accepted."""

    id: str
    recipe: Recipe
    source: Source
    max_attempts: int
    owner: str = DEFAULT_TEAM
    retry_of: str | None = None
    request_id: str | None = None
    attempt: int = 0
    """Number of the attempt before its first one; more than 0 where it goes on with another job's work."""


def submitting() -> Select[Any]:
    """Return the statement that keeps a job, its first event and an entry of the audit, and finds its row."""
    job = (
        insert(JobRow)
        .values(
            id=bindparam("new_id"),
            owner=bindparam("new_owner"),
            state=State.QUEUED,
            progress=0.0,
            attempt=bindparam("new_attempt"),
            attempts_left=bindparam("new_attempts_left"),
            run_after=clock(),
            rung_at=clock(),
            recipe=bindparam("new_recipe"),
            source=bindparam("new_source"),
            retry_of=bindparam("new_retry_of"),
            request_id=bindparam("new_request_id"),
            created_at=clock(),
            queued_at=clock(),
        )
        .returning(JobRow)
        .cte("job")
    )
    queued = events.entered(State.QUEUED)
    columns = [EventRow.job_id, EventRow.attempt, EventRow.kind, EventRow.data, EventRow.at]
    values = select(job.c.id, job.c.attempt, literal(queued.kind), literal(queued.data, JSONB), clock())
    ahead = select(func.count()).where(
        JobRow.owner == job.c.owner,
        JobRow.state == State.QUEUED,
        or_(JobRow.device.is_(None), JobRow.device == job.c.device),
        JobRow.priority >= job.c.priority,
    )
    told = exists().where(
        or_(SubscriptionRow.team == job.c.owner, SubscriptionRow.team.is_(None)),
        SubscriptionRow.events.contains([EventName.QUEUED]),
        SubscriptionRow.disabled_at.is_(None),
    )
    return select(
        job,
        ahead.scalar_subquery().label("ahead"),
        roster.serving_column(job.c.device).scalar_subquery().label("workers"),
        told.label("told"),
    ).add_cte(insert(EventRow).from_select(columns, values).cte("event"), RECORD.cte("entry"))


SUBMIT = submitting()
"""Made once: to make such a statement takes longer than to send it."""


def submit(session: Session, job: NewJob, entry: Entry | None = None) -> Row[Any]:
    """Keep the job, with its metadata by which it can be found, and the entry of the audit.

    Return its row, with the columns of JobRow, and how it waits: see `waiting_of`.
    """
    entry = entry or Entry(operator(job.owner), "job.submitted", job.id)
    values = {
        "new_id": job.id,
        "new_owner": job.owner,
        "new_attempt": job.attempt,
        "new_attempts_left": job.max_attempts,
        "new_recipe": job.recipe.model_dump(mode="json"),
        "new_source": job.source.model_dump(mode="json"),
        "new_retry_of": job.retry_of,
        "new_request_id": job.request_id,
        **entry.values,
    }
    row = session.connection().execute(SUBMIT, values).one()
    listing.note_metadata(session, job.id, job.owner, job.recipe, row.created_at)
    if row.told:
        announce(session, job.id, State.QUEUED)
    return row


def waiting_of(row: Row[Any]) -> Waiting:
    """Return how a job waits that `submit` has kept just now."""
    return Waiting(position=1 + row.ahead, workers=row.workers)
