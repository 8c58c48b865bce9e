"""On whose behalf something is done."""

from dataclasses import dataclass

from app.keys.models import DEFAULT_TEAM
from modelpress.contract.access import Scope


@dataclass(frozen=True)
class Caller:
    """A team, and the key that was used, if any."""

    team: str
    key_id: str | None
    scopes: frozenset[Scope]
    request_id: str | None = None


def anyone(request_id: str | None = None) -> Caller:
    """Return the caller where no keys are asked for: of the default team, and allowed everything."""
    return Caller(DEFAULT_TEAM, None, frozenset(Scope), request_id)


def operator(team: str) -> Caller:
    """Return the caller for what the operator changes, who needs no key but the database."""
    return Caller(team, None, frozenset(Scope))
