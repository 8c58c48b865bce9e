"""The tables of teams, keys and audit entries, as objects. Every statement on them is in `store.py`."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base

DEFAULT_TEAM = "default"
"""The team of every caller where no keys are asked for."""


class TeamRow(Base):
    """A team and its limits; None is no limit."""

    __tablename__ = "teams"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    claimed_at: Mapped[datetime | None]
    """When a job of the team was last begun; the team that has waited for longest is next."""
    max_queued: Mapped[int | None]
    max_running: Mapped[int | None]
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)


class KeyRow(Base):
    """A key of a team. Its secret is not stored, only a hash of it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    team: Mapped[str] = mapped_column(ForeignKey("teams.name"), index=True)
    name: Mapped[str]
    sha256: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSONB)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]


class AuditRow(Base):
    """Something that a caller has changed."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime]
    team: Mapped[str]
    key_id: Mapped[str | None]
    action: Mapped[str]
    subject: Mapped[str]
    request_id: Mapped[str | None]
    detail: Mapped[dict[str, Any]]
