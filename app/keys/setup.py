"""What an operator does with teams and keys, with nothing but the database."""

from app.db import Sessions
from app.keys import store
from app.keys.callers import operator
from app.keys.models import DEFAULT_TEAM
from app.keys.service import KeyService
from modelpress.contract.access import IssuedKey, KeyRequest, Scope


def issue_key(sessions: Sessions, team: str, request: KeyRequest) -> IssuedKey:
    """Make a key of any team, which is made, too, if there is none of that name."""
    return KeyService(sessions, is_open=False).create(operator(team), request)


def first_key(sessions: Sessions) -> IssuedKey | None:
    """Make a key with every scope if there is none at all: else nobody could make one."""
    with sessions() as session:
        if store.has_keys(session):
            return None
    return issue_key(sessions, DEFAULT_TEAM, KeyRequest(name="first key", scopes=frozenset(Scope)))


def set_limits(
    sessions: Sessions, team: str, max_queued: int | None, max_running: int | None, max_stored_bytes: int | None
) -> None:
    """Give the team these limits, and make it if there is none of that name; None is no limit."""
    limits = {"max_queued": max_queued, "max_running": max_running, "max_stored_bytes": max_stored_bytes}
    with sessions.begin() as session:
        store.add_team(session, team)
        row = store.team(session, team)
        for name, limit in limits.items():
            setattr(row, name, limit)
        store.record(session, operator(team), "team.changed", team, **limits)
