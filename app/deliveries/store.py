"""Every statement on subscriptions and deliveries. The caller of a function commits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import SecretStr
from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.deliveries.models import DeliveryRow, SubscriptionRow
from modelpress.contract.webhook import DeliveryState, EventName

DELAYS = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Seconds until the second attempt, the third, and so on, as Standard Webhooks has them; then a delivery is dead."""
SEND_SECONDS = 60.0
"""A delivery that was taken to be sent is taken by another worker after this: the first one has died."""
KEEP_SECONDS = 30 * 24 * 3600.0
OLD_SECRET_SECONDS = 24 * 3600.0
MOST_AT_ONCE = 2
"""Deliveries of one subscription that are sent at the same time, so that a slow receiver leaves room for others."""
LONGEST_ERROR = 500


@dataclass(frozen=True)
class Outgoing:
    """A delivery that is about to be sent."""

    id: int
    message_id: str
    event: str
    job_id: str | None
    body: str
    attempt: int
    sink: str
    target: str
    secrets: tuple[SecretStr, ...] = field(repr=False)
    """What it is signed with: the secret, and for a while the one that it has replaced."""


def listeners(session: Session, team: ColumnElement[str], event: EventName) -> Sequence[str]:
    """Return the subscriptions that are to be told of this event of the team."""
    return session.scalars(
        select(SubscriptionRow.id).where(
            or_(SubscriptionRow.team == team, SubscriptionRow.team.is_(None)),
            SubscriptionRow.events.contains([event]),
            SubscriptionRow.disabled_at.is_(None),
        )
    ).all()


def enqueue(session: Session, subscriptions: Sequence[str], event: EventName, body: str, job_id: str | None) -> None:
    """Write down that these subscriptions are to be told of something that happens in this transaction."""
    rows = [
        {
            "message_id": f"msg_{secrets.token_hex(12)}",
            "subscription_id": subscription,
            "event": event,
            "job_id": job_id,
            "body": body,
            "state": DeliveryState.PENDING,
            "attempts": 0,
            "created_at": clock(),
            "next_at": clock(),
        }
        for subscription in subscriptions
    ]
    if rows:
        session.execute(insert(DeliveryRow).values(rows))


def take_due(session: Session, most: int) -> list[Outgoing]:
    """Return deliveries that are due, which no other worker takes while they are sent. Teams take turns."""
    is_due = (DeliveryRow.state == DeliveryState.PENDING, DeliveryRow.next_at <= clock())
    turn = func.row_number().over(partition_by=DeliveryRow.subscription_id, order_by=DeliveryRow.next_at)
    due = (
        select(DeliveryRow.id, DeliveryRow.next_at, SubscriptionRow.team, turn.label("turn"))
        .join(SubscriptionRow, SubscriptionRow.id == DeliveryRow.subscription_id)
        .where(*is_due)
        .subquery()
    )
    place = func.row_number().over(partition_by=due.c.team, order_by=due.c.next_at)
    placed = select(due.c.id, place.label("place")).where(due.c.turn <= MOST_AT_ONCE).subquery()
    taken = session.scalars(
        select(DeliveryRow.id)
        .join(placed, placed.c.id == DeliveryRow.id)
        .where(*is_due)
        .order_by(placed.c.place, DeliveryRow.next_at)
        .limit(most)
        .with_for_update(skip_locked=True, of=DeliveryRow)
    ).all()
    if not taken:
        return []
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.id.in_(taken))
        .values(next_at=clock() + seconds(SEND_SECONDS), attempts=DeliveryRow.attempts + 1)
        .execution_options(synchronize_session=False)
    )
    rows = session.execute(
        select(DeliveryRow, SubscriptionRow, SubscriptionRow.old_secret_until > clock())
        .join(SubscriptionRow, SubscriptionRow.id == DeliveryRow.subscription_id)
        .where(DeliveryRow.id.in_(taken))
        .execution_options(populate_existing=True)
    )
    return [as_outgoing(row, subscription, with_old=bool(recent)) for row, subscription, recent in rows]


def as_outgoing(row: DeliveryRow, subscription: SubscriptionRow, *, with_old: bool) -> Outgoing:
    found = [subscription.secret, subscription.old_secret if with_old else None]
    return Outgoing(
        id=row.id,
        message_id=row.message_id,
        event=row.event,
        job_id=row.job_id,
        body=row.body,
        attempt=row.attempts,
        sink=subscription.sink,
        target=subscription.target,
        secrets=tuple(SecretStr(secret) for secret in found if secret is not None),
    )


def note_delivered(session: Session, outgoing: Outgoing) -> None:
    """Write down that the receiver has taken it."""
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.id == outgoing.id)
        .values(state=DeliveryState.DELIVERED, delivered_at=clock(), error=None)
    )


def note_failed(session: Session, outgoing: Outgoing, error: str, delay_seconds: float | None) -> None:
    """Write down that an attempt has failed: it is sent again after this time, or never where that is None."""
    values = {"state": DeliveryState.DEAD} if delay_seconds is None else {"next_at": clock() + seconds(delay_seconds)}
    session.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.id == outgoing.id,
            DeliveryRow.attempts == outgoing.attempt,
            DeliveryRow.state == DeliveryState.PENDING,
        )
        .values(error=error[:LONGEST_ERROR].replace("\0", ""), **values)
    )


def disable(session: Session, outgoing: Outgoing) -> None:
    """Send nothing any more to a receiver that wants nothing; what waits for it is dead."""
    subscription = select(DeliveryRow.subscription_id).where(DeliveryRow.id == outgoing.id).scalar_subquery()
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.subscription_id == subscription, DeliveryRow.state == DeliveryState.PENDING)
        .values(state=DeliveryState.DEAD)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.id == subscription, SubscriptionRow.disabled_at.is_(None))
        .values(disabled_at=clock())
        .execution_options(synchronize_session=False)
    )


def forget(session: Session) -> None:
    """Delete the log of what was sent long ago."""
    old = DeliveryRow.created_at < clock() - seconds(KEEP_SECONDS)
    session.execute(delete(DeliveryRow).where(old, DeliveryRow.state != DeliveryState.PENDING))


def add(session: Session, row: SubscriptionRow) -> SubscriptionRow:
    """Store a subscription, with the time of the database."""
    session.add(row)
    session.flush()
    return row


def of_team(session: Session, team: str, sink: str) -> Sequence[SubscriptionRow]:
    """Return the subscriptions of a team, newest first."""
    query = select(SubscriptionRow).where(SubscriptionRow.team == team, SubscriptionRow.sink == sink)
    return session.scalars(query.order_by(SubscriptionRow.created_at.desc(), SubscriptionRow.id)).all()


def find(session: Session, team: str, subscription_id: str) -> SubscriptionRow | None:
    """Return the subscription of the team; None where it has none of this id."""
    query = select(SubscriptionRow).where(SubscriptionRow.id == subscription_id, SubscriptionRow.team == team)
    return session.scalar(query)


def rotate(session: Session, subscription_id: str, secret: str) -> None:
    """Give a subscription another secret; what it has now is used beside it for a while."""
    session.execute(
        update(SubscriptionRow)
        .where(SubscriptionRow.id == subscription_id)
        .values(
            secret=secret,
            old_secret=SubscriptionRow.secret,
            old_secret_until=clock() + seconds(OLD_SECRET_SECONDS),
        )
    )


def remove(session: Session, subscription_id: str) -> None:
    """Delete a subscription with its log; what waits is not sent."""
    session.execute(delete(SubscriptionRow).where(SubscriptionRow.id == subscription_id))


def log(session: Session, subscription_id: str, before: int | None, limit: int) -> Sequence[DeliveryRow]:
    """Return what was sent to a subscription, newest first, beginning behind the delivery `before`."""
    query = select(DeliveryRow).where(DeliveryRow.subscription_id == subscription_id)
    if before is not None:
        query = query.where(DeliveryRow.id < before)
    return session.scalars(query.order_by(DeliveryRow.id.desc()).limit(limit)).all()


def send_again(session: Session, subscription_id: str, delivery_id: int) -> DeliveryRow | None:
    """Make a delivery due once more, whatever became of it, and return it; None where there is none of this id."""
    row = session.scalar(
        select(DeliveryRow)
        .where(DeliveryRow.id == delivery_id, DeliveryRow.subscription_id == subscription_id)
        .with_for_update()
    )
    if row is not None:
        values = {"state": DeliveryState.PENDING, "attempts": 0, "next_at": clock(), "delivered_at": None}
        session.execute(update(DeliveryRow).where(DeliveryRow.id == delivery_id).values(values))
        session.refresh(row)
    return row


def states(session: Session) -> dict[tuple[str, str], int]:
    """Return how many deliveries there are, by the kind of receiver and state."""
    query = select(SubscriptionRow.sink, DeliveryRow.state, func.count()).join(
        SubscriptionRow, SubscriptionRow.id == DeliveryRow.subscription_id
    )
    rows = session.execute(query.group_by(SubscriptionRow.sink, DeliveryRow.state))
    return {(sink, state): count for sink, state, count in rows}


def oldest_pending_seconds(session: Session) -> float:
    """Return for how long the oldest delivery has waited that its receiver has not taken; 0 where there is none."""
    age = func.extract("epoch", clock() - func.min(DeliveryRow.created_at))
    return float(session.scalar(select(age).where(DeliveryRow.state == DeliveryState.PENDING)) or 0.0)
