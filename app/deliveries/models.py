"""The tables of the outbox, as objects. Every statement on them is in `store.py`."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Identity
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class SubscriptionRow(Base):
    """Somebody who is to be told of certain events."""

    __tablename__ = "subscriptions"

    id: Mapped[str] = mapped_column(primary_key=True)
    team: Mapped[str | None] = mapped_column(ForeignKey("teams.name"), index=True)
    """None: the operator's, for the events of every team."""
    sink: Mapped[str]
    """The kind of receiver, a name of `registry.SINKS`."""
    target: Mapped[str]
    events: Mapped[list[str]] = mapped_column(JSONB)
    secret: Mapped[str | None]
    old_secret: Mapped[str | None]
    """The one before, with which is signed, too, for as long as `old_secret_until` says."""
    old_secret_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class DeliveryRow(Base):
    """An event for one subscription, kept as the log of what was sent."""

    __tablename__ = "deliveries"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    message_id: Mapped[str]
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id", ondelete="CASCADE"))
    event: Mapped[str]
    job_id: Mapped[str | None]
    body: Mapped[str]
    """The text that is signed and sent, the same at each attempt."""
    state: Mapped[str]
    attempts: Mapped[int]
    created_at: Mapped[datetime]
    next_at: Mapped[datetime]
    """When it is due. While it is being sent, when another worker may take it for lost."""
    delivered_at: Mapped[datetime | None]
    error: Mapped[str | None]
