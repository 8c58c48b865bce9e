"""Which workers there are. Each writes its row again and again; one that stops doing so is lost.

Every function takes a session and never commits.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.jobs.models import JobRow, WorkerRow
from app.jobs.states import LEASED
from modelpress.contract.worker import Worker, WorkerState

BEAT_SECONDS = 5.0
LOST_SECONDS = 4 * BEAT_SECONDS
FORGET_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Introduction:
    """Name, device and labels that a worker reports when it starts, and its GPU once it has seen it."""

    id: str
    version: str
    device: str
    labels: tuple[str, ...]
    gpu: str | None = None
    gpu_memory_bytes: int | None = None


def beat(session: Session, worker: Introduction) -> bool:
    """Write that the worker lives. Return whether it is to take no further job."""
    statement = insert(WorkerRow).values(
        id=worker.id,
        version=worker.version,
        device=worker.device,
        labels=list(worker.labels),
        gpu=worker.gpu,
        gpu_memory_bytes=worker.gpu_memory_bytes,
        started_at=clock(),
        beat_at=clock(),
        draining=False,
    )
    present = {"beat_at": clock(), "gpu": worker.gpu, "gpu_memory_bytes": worker.gpu_memory_bytes}
    return session.execute(
        statement.on_conflict_do_update(index_elements=[WorkerRow.id], set_=present).returning(WorkerRow.draining)
    ).scalar_one()


def leave(session: Session, worker_id: str) -> None:
    """Take a worker that ends out of the list."""
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def drain(session: Session, worker_id: str) -> bool:
    """Ask a worker to end once it has computed the job that it has. Return whether there is such a worker."""
    found = update(WorkerRow).where(WorkerRow.id == worker_id).values(draining=True).returning(WorkerRow.id)
    return session.execute(found).one_or_none() is not None


def forget(session: Session) -> None:
    """Delete the rows of workers that were lost long ago."""
    session.execute(delete(WorkerRow).where(WorkerRow.beat_at < clock() - seconds(FORGET_SECONDS)))


def lives() -> ColumnElement[bool]:
    """Return the condition that a worker has been heard of lately."""
    return WorkerRow.beat_at > clock() - seconds(LOST_SECONDS)


def serving_column(device: SQLColumnExpression[Any]) -> Select[int]:
    """Return the query for how many workers take jobs for the device in a column; null there stands for any device."""
    serves = or_(device.is_(None), WorkerRow.labels.has_key(device))
    return select(func.count()).where(lives(), WorkerRow.draining.is_(False), serves)


def serving(session: Session, device: str | None) -> int:
    """Return how many workers take jobs for this device; None stands for any device."""
    query = select(func.count()).select_from(WorkerRow).where(lives(), WorkerRow.draining.is_(False))
    if device is not None:
        query = query.where(WorkerRow.labels.contains([device]))
    return session.scalar(query) or 0


def workers(session: Session, team: str) -> Sequence[Worker]:
    """Return every worker, with the job that it computes if that is the team's."""
    job = (JobRow.worker == WorkerRow.id) & JobRow.state.in_(LEASED)
    rows = session.execute(
        select(WorkerRow, lives(), JobRow.id, JobRow.owner).outerjoin(JobRow, job).order_by(WorkerRow.started_at)
    )
    return tuple(as_worker(row, alive, job_id, ours=owner == team) for row, alive, job_id, owner in rows)


def states(session: Session) -> dict[WorkerState, int]:
    """Return how many workers there are in each state."""
    found = Counter(worker.state for worker in workers(session, team=""))
    return {state: found[state] for state in WorkerState}


def as_worker(row: WorkerRow, alive: bool, job_id: str | None, *, ours: bool) -> Worker:
    """Return the worker of a row."""
    if not alive:
        state = WorkerState.LOST
    elif row.draining:
        state = WorkerState.DRAINING
    else:
        state = WorkerState.IDLE if job_id is None else WorkerState.BUSY
    return Worker(
        id=row.id,
        state=state,
        device=row.device,
        labels=tuple(row.labels),
        gpu=row.gpu,
        gpu_memory_bytes=row.gpu_memory_bytes,
        job=job_id if ours else None,
        started_at=row.started_at,
        beat_at=row.beat_at,
        version=row.version,
    )
