"""Every statement on teams, keys and the record of changes. The caller of a function commits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.keys.callers import Caller
from app.keys.models import AuditRow, KeyRow, TeamRow
from app.keys.tokens import Token
from modelpress.contract.access import Scope

DAY_SECONDS = 24 * 3600.0
USE_SECONDS = 60.0
"""How exactly the last use of a key is known; more would write at every request."""


def add_team(session: Session, name: str) -> None:
    """Make the team, if there is none of this name."""
    session.execute(insert(TeamRow).values(name=name, created_at=clock()).on_conflict_do_nothing())


def team(session: Session, name: str) -> TeamRow:
    """Return the team; nobody else changes it, or counts what it has, until the transaction ends."""
    return session.scalars(select(TeamRow).where(TeamRow.name == name).with_for_update()).one()


def add_key(session: Session, token: Token, team: str, name: str, scopes: frozenset[Scope], days: int | None) -> KeyRow:
    """Store a new key, without its secret, and return it."""
    values = {
        "id": token.id,
        "team": team,
        "name": name,
        "sha256": token.sha256,
        "scopes": sorted(scopes),
        "created_at": clock(),
        "expires_at": None if days is None else clock() + seconds(days * DAY_SECONDS),
    }
    return session.scalars(insert(KeyRow).values(values).returning(KeyRow)).one()


def valid_key(session: Session, key_id: str) -> KeyRow | None:
    """Return the key of this id, if it has neither expired nor been revoked."""
    unexpired = or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > clock())
    return session.scalar(select(KeyRow).where(KeyRow.id == key_id, KeyRow.revoked_at.is_(None), unexpired))


def note_use(session: Session, key_id: str) -> None:
    """Remember that the key is in use now."""
    stale = or_(KeyRow.used_at.is_(None), KeyRow.used_at < clock() - seconds(USE_SECONDS))
    session.execute(update(KeyRow).where(KeyRow.id == key_id, stale).values(used_at=clock()))


def is_stale(used_at: datetime | None, now: datetime) -> bool:
    """Return whether the last use was noted too long ago."""
    return used_at is None or (now - used_at).total_seconds() > USE_SECONDS


def revoke(session: Session, team: str, key_id: str) -> KeyRow | None:
    """Make the key of the team useless from now on, and return it; None where the team has no such key."""
    row = session.scalar(select(KeyRow).where(KeyRow.id == key_id, KeyRow.team == team).with_for_update())
    if row is not None and row.revoked_at is None:
        session.execute(update(KeyRow).where(KeyRow.id == key_id).values(revoked_at=clock()))
        session.refresh(row)
    return row


def keys(session: Session, team: str) -> Sequence[KeyRow]:
    """Return all keys of the team, newest first."""
    query = select(KeyRow).where(KeyRow.team == team).order_by(KeyRow.created_at.desc(), KeyRow.id)
    return session.scalars(query).all()


def has_keys(session: Session) -> bool:
    """Return whether any key was ever made."""
    return session.scalar(select(KeyRow.id).limit(1)) is not None


RECORD = insert(AuditRow).values(
    at=clock(),
    team=bindparam("of_team"),
    key_id=bindparam("by_key"),
    action=bindparam("done"),
    subject=bindparam("to"),
    request_id=bindparam("by_request"),
    detail=bindparam("with_detail"),
)
"""Made once: to make such a statement takes longer than to send it."""


@dataclass(frozen=True)
class Entry:
    """An entry of the audit: the caller, what they did, and to what."""

    caller: Caller
    action: str
    subject: str
    detail: Mapping[str, str | int | None] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """Return the parameters of RECORD."""
        return {
            "of_team": self.caller.team,
            "by_key": self.caller.key_id,
            "done": self.action,
            "to": self.subject,
            "by_request": self.caller.request_id,
            "with_detail": dict(self.detail),
        }


def record(session: Session, caller: Caller, action: str, subject: str, **detail: str | int | None) -> None:
    """Write down what the caller changes in this transaction."""
    session.connection().execute(RECORD, Entry(caller, action, subject, detail).values)


def audit(session: Session, team: str, before: int | None, limit: int) -> Sequence[AuditRow]:
    """Return what was changed, newest first, beginning behind the entry `before`."""
    query = select(AuditRow).where(AuditRow.team == team).order_by(AuditRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditRow.id < before)
    return session.scalars(query).all()
