"""How much there is of everything, over all teams, for whoever watches the service."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, literal_column, or_, select
from sqlalchemy.orm import Session

from app.clock import clock
from app.deliveries import store as deliveries
from app.jobs import roster
from app.jobs.models import ArtifactRow, JobRow
from app.jobs.states import ENDED, LEASED
from modelpress.contract.job import State
from modelpress.contract.worker import WorkerState

ANY_DEVICE = "any"


@dataclass(frozen=True)
class Queue:
    """The jobs for one device that are due, and the workers that take them."""

    jobs: int
    oldest_seconds: float
    workers: int


@dataclass(frozen=True)
class Census:
    """Counts over all teams at one moment."""

    jobs: Mapping[State, int]
    failed: Mapping[str, int]
    """Failed jobs by the code of their failure."""
    queues: Mapping[str, Queue]
    workers: Mapping[WorkerState, int]
    stored_bytes: int
    deliveries: Mapping[tuple[str, str], int]
    """Deliveries by the kind of receiver and their state."""
    oldest_delivery_seconds: float
    """For how long the oldest one has waited that its receiver has not taken."""


@dataclass(frozen=True)
class Settled:
    """Counts of what is over: ended jobs, stored bytes, deliveries. Counting them reads every row."""

    jobs: Mapping[State, int]
    failed: Mapping[str, int]
    stored_bytes: int
    deliveries: Mapping[tuple[str, str], int]


def settled(session: Session) -> Settled:
    """Count the jobs that have ended, and what is stored and was sent."""
    code = JobRow.error["code"].astext
    return Settled(
        jobs=counted(session, JobRow.state, ENDED),
        failed={code: count for code, count in counted(session, code, [State.FAILED]).items() if code is not None},
        stored_bytes=int(session.scalar(select(func.sum(ArtifactRow.bytes))) or 0),
        deliveries=deliveries.states(session),
    )


def census(session: Session, known: Settled) -> Census:
    """Count what is under way, each by an index of its own, and return it beside what is known of the rest."""
    live = [counted(session, JobRow.state, states) for states in ([State.QUEUED], sorted(LEASED))]
    states = Counter({State(state): count for found in (known.jobs, *live) for state, count in found.items()})
    return Census(
        jobs={state: states[state] for state in State},
        failed=known.failed,
        queues=queues(session),
        workers=roster.states(session),
        stored_bytes=known.stored_bytes,
        deliveries=known.deliveries,
        oldest_delivery_seconds=deliveries.oldest_pending_seconds(session),
    )


def counted(session: Session, column: Any, states: Collection[State]) -> dict[Any, int]:
    """Return each value of a column of the jobs in these states, and how many have it."""
    among = or_(*(JobRow.state == literal_column(f"'{state}'") for state in sorted(states)))
    rows = session.execute(select(column, func.count()).where(among).group_by(column))
    return {row[0]: row[1] for row in rows}


def queues(session: Session) -> dict[str, Queue]:
    """Return the queue of each device for which jobs are due, and always that of the jobs for any device."""
    rows = session.execute(
        select(JobRow.device, func.count(), func.extract("epoch", clock() - func.min(JobRow.queued_at)))
        .where(JobRow.state == State.QUEUED, JobRow.run_after <= clock())
        .group_by(JobRow.device)
    )
    found: dict[str | None, tuple[int, float]] = {None: (0, 0.0)}
    found |= {device: (count, float(age)) for device, count, age in rows}
    return {
        device or ANY_DEVICE: Queue(count, max(age, 0.0), roster.serving(session, device))
        for device, (count, age) in found.items()
    }
