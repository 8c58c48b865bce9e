"""Pages of jobs, each found by an index however many jobs there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, and_, insert, literal, select, tuple_
from sqlalchemy.orm import Session, aliased

from app.jobs.models import JobRow, MetadataRow
from modelpress.contract.job import State
from modelpress.contract.recipe import Recipe

SHOWN = (
    JobRow.id,
    JobRow.owner,
    JobRow.state,
    JobRow.stage,
    JobRow.progress,
    JobRow.seconds_left,
    JobRow.model,
    JobRow.method,
    JobRow.device,
    JobRow.priority,
    JobRow.recipe["target_ratio"].label("target_ratio"),
    JobRow.recipe["metadata"].label("metadata"),
    JobRow.achieved_ratio,
    JobRow.error,
    JobRow.retry_of,
    JobRow.created_at,
    JobRow.queued_at,
    JobRow.running_at,
    JobRow.cancelling_at,
    JobRow.succeeded_at,
    JobRow.failed_at,
    JobRow.cancelled_at,
)
"""The columns of a summary: neither the whole recipe nor the measurements."""


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are wanted; None is any."""

    state: State | None = None
    model: str | None = None
    method: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None


def note_metadata(session: Session, job_id: str, owner: str, recipe: Recipe, created_at: datetime) -> None:
    """Write down the metadata of a new job. Each row repeats the job's model, method and time, which never change, so
    that one index answers a filter on several of them."""
    known = {
        "job_id": job_id,
        "owner": owner,
        "model": recipe.model,
        "method": recipe.method.name,
        "created_at": created_at,
    }
    if recipe.metadata:
        session.execute(insert(MetadataRow), [known | {"key": k, "value": v} for k, v in recipe.metadata.items()])


def page(
    session: Session, owner: str, wanted: JobFilter, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Row[Any]]:
    """Return jobs of the owner, newest first, starting behind the job with this creation time and id."""
    return session.execute(select_jobs(owner, wanted, after, limit)).all()


def select_jobs(owner: str, wanted: JobFilter, after: tuple[datetime, str] | None, limit: int) -> Select[Any]:
    """Return the query of a page.

    The order is that of the table by which they are found, so that its index gives both.
    """
    query = select(*SHOWN)
    model, method, created_at, job_id = JobRow.model, JobRow.method, JobRow.created_at, JobRow.id
    states = [JobRow.state]
    if wanted.metadata:
        pairs = [aliased(MetadataRow) for _ in wanted.metadata]
        for pair, (key, value) in zip(pairs, wanted.metadata, strict=True):
            same = and_(pair.job_id == JobRow.id, pair.owner == owner, pair.key == key, pair.value == value)
            query = query.join(pair, same)
        model, method, created_at, job_id = pairs[0].model, pairs[0].method, pairs[0].created_at, pairs[0].job_id
        states += [pair.state for pair in pairs]
    query = query.where(JobRow.owner == owner).order_by(created_at.desc(), job_id.desc()).limit(limit)
    for column, exactly in ((model, wanted.model), (method, wanted.method)):
        if exactly is not None:
            query = query.where(column == exactly)
    if wanted.state is not None:
        query = query.where(*(state == wanted.state for state in states))
    if wanted.created_after is not None:
        query = query.where(created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(created_at < wanted.created_before)
    if after is not None:
        query = query.where(tuple_(created_at, job_id) < tuple_(*map(literal, after)))
    return query
