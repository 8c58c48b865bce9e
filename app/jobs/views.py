"""Rows of the tables as answers of the API, and the cursors of its pages."""

import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import Row

from app.jobs.models import AttemptRow, EventRow, JobRow, UploadRow
from app.jobs.states import ENDED
from modelpress.contract.event import EventKind, JobEvent
from modelpress.contract.job import (
    Attempt,
    AttemptOutcome,
    Comparison,
    Failure,
    Job,
    JobSummary,
    Resumed,
    Source,
    State,
    SweepResult,
    Timestamps,
    Waiting,
)
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused

log = logging.getLogger(__name__)

Content = TypeVar("Content", bound=BaseModel)


def as_job(row: JobRow | Row[Any], attempts: Sequence[AttemptRow], waiting: Waiting | None = None) -> Job:
    """Return the job; its links are paths below the root of the API."""
    here, source = f"/jobs/{row.id}", stored(Source, row.source)
    links = {"self": here}
    if row.metrics is not None:
        links |= {"artifacts": f"{here}/artifacts", "checkpoint": f"{here}/checkpoint"}
    if row.state not in ENDED:
        links |= {"cancel": f"{here}/cancel"}
    elif row.state != State.SUCCEEDED:
        links |= {"retry": f"{here}/retry"}
    return Job(
        id=row.id,
        team=row.owner,
        state=read_state(row),
        stage=row.stage,
        progress=row.progress,
        detail=row.detail,
        seconds_left=row.seconds_left,
        attempt=row.attempt,
        attempts=tuple(as_attempt(attempt) for attempt in attempts),
        waiting=waiting,
        retry_of=row.retry_of,
        timestamps=timestamps(row),
        recipe=stored(Recipe, row.recipe),
        source=source,
        warnings=source.warnings,
        achieved_ratio=row.achieved_ratio,
        metrics=None if row.metrics is None else stored(Comparison, row.metrics),
        sweep=tuple(stored(SweepResult, result) for result in row.sweep or ()),
        error=None if row.error is None else stored(Failure, row.error),
        links=links,
    )


def as_summary(row: Row[Any]) -> JobSummary:
    """Return a job as a list shows it; `row` has the columns of `listing.SHOWN`."""
    ratio = row.target_ratio
    return JobSummary(
        id=row.id,
        team=row.owner,
        state=read_state(row),
        stage=row.stage,
        progress=row.progress,
        seconds_left=row.seconds_left,
        timestamps=timestamps(row),
        model=row.model,
        target_ratio=tuple(ratio) if isinstance(ratio, list) else ratio,
        method=row.method,
        device=row.device,
        priority=row.priority,
        metadata=row.metadata or {},
        achieved_ratio=row.achieved_ratio,
        error=None if row.error is None else stored(Failure, row.error),
        retry_of=row.retry_of,
        links={"self": f"/jobs/{row.id}"},
    )


def timestamps(row: JobRow | Row[Any]) -> Timestamps:
    """Return when the job entered each of its states."""
    return Timestamps(
        queued=row.queued_at,
        running=row.running_at,
        cancelling=row.cancelling_at,
        succeeded=row.succeeded_at,
        failed=row.failed_at,
        cancelled=row.cancelled_at,
    )


def as_event(row: EventRow) -> JobEvent:
    """Return the event of a row."""
    return JobEvent(id=row.id, at=row.at, attempt=row.attempt, kind=EventKind(row.kind), data=row.data)


def as_attempt(row: AttemptRow) -> Attempt:
    """Return the attempt of a row."""
    return Attempt(
        number=row.number,
        worker=row.worker,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=read_outcome(row),
        resumed=None if row.resumed is None else stored(Resumed, row.resumed),
    )


def stored(kind: type[Content], content: Mapping[str, Any]) -> Content:
    """Return what lies in the database. What another version of the service has stored there is passed on as it is."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        log.warning("stored_by_another_version", extra={"kind": kind.__name__, "errors": error.error_count()})
        return kind.model_construct(**content)


def read_state(row: JobRow | Row[Any]) -> State:
    """Return the job's state; one that only another version knows is `running` until the job has ended."""
    try:
        return State(row.state)
    except ValueError:
        return State.RUNNING


def read_outcome(row: AttemptRow) -> AttemptOutcome | None:
    """Return how the attempt ended; an outcome that only another version knows is `lost`."""
    try:
        return None if row.outcome is None else AttemptOutcome(row.outcome)
    except ValueError:
        return AttemptOutcome.LOST


def write_cursor(row: JobRow | UploadRow | Row[Any]) -> str:
    """Return the cursor of the page behind this job or upload."""
    return base64.urlsafe_b64encode(f"{row.created_at.isoformat()} {row.id}".encode()).decode()


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """Return creation time and id of the job behind which a page begins. Raises Refused for what is no cursor."""
    try:
        moment, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().split(" ")
        created_at = datetime.fromisoformat(moment)
    except (ValueError, binascii.Error):
        raise Refused("after", "send the 'next' of an earlier page, unchanged") from None
    if created_at.tzinfo is None or "\0" in job_id:
        raise Refused("after", "send the 'next' of an earlier page, unchanged")
    return created_at, job_id
