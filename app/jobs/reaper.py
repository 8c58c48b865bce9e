"""Takes jobs from workers that fell silent. The caller of a function commits."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.clock import clock
from app.jobs import store
from app.jobs.models import JobRow
from app.jobs.states import LEASED
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Failure, State


@dataclass(frozen=True)
class Reaped:
    job_id: str
    state: State


def reap(session: Session, retry_delay_seconds: float, batch: int = 100) -> list[Reaped]:
    """Take jobs from workers that fell silent: queue them again, or fail them when no attempt is left."""
    silent = session.scalars(
        select(JobRow)
        .where(JobRow.state.in_(LEASED), JobRow.lease_until < clock())
        .order_by(JobRow.lease_until)
        .limit(batch)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    reaped = []
    for row in silent:
        if row.state == State.CANCELLING:
            store.stop(session, row.id, row.attempt)
        else:
            delay = store.retry_delay(retry_delay_seconds, row.attempt)
            store.retry_or_fail(session, row.id, row.attempt, worker_lost(row), delay)
        session.refresh(row)
        reaped.append(Reaped(row.id, State(row.state)))
    return reaped


def worker_lost(row: JobRow) -> Failure:
    return Failure.of(
        FailureCode.WORKER_LOST,
        f"{row.attempt} workers fell silent while they computed this job; the last one was {row.worker}",
        stage=row.stage,
        attempt=row.attempt,
    )
