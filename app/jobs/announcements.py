"""What others are told of a job that enters a state."""

import json
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.clock import clock
from app.deliveries import store
from app.jobs.models import JobRow
from modelpress.contract.webhook import EventName


def announce(session: Session, job_id: str, state: str) -> None:
    """Write into the outbox that the job has entered a state; in the transaction in which it does."""
    event = EventName(f"job.{state}")
    team = select(JobRow.owner).where(JobRow.id == job_id).scalar_subquery()
    subscriptions = store.listeners(session, team, event)
    if not subscriptions:
        return
    row = session.execute(
        select(
            JobRow.owner,
            JobRow.model,
            JobRow.method,
            JobRow.recipe["target_ratio"].label("target_ratio"),
            JobRow.recipe["metadata"].label("metadata"),
            JobRow.achieved_ratio,
            JobRow.error,
            JobRow.attempt,
            clock().label("now"),
        ).where(JobRow.id == job_id)
    ).one()
    body = {
        "type": event,
        "timestamp": moment(row.now),
        "data": {
            "id": job_id,
            "team": row.owner,
            "state": state,
            "model": row.model,
            "method": row.method,
            "target_ratio": row.target_ratio,
            "achieved_ratio": row.achieved_ratio,
            "metadata": row.metadata or {},
            "attempt": row.attempt,
            "error": row.error and {"code": row.error["code"], "message": row.error["message"]},
            "links": {"self": f"/jobs/{job_id}"},
        },
    }
    store.enqueue(session, subscriptions, event, json.dumps(body, ensure_ascii=False), job_id)


def moment(time: datetime) -> str:
    """Return a time as a message says it."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
