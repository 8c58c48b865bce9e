"""Who a caller is, and what can be done with keys. Each method commits before it returns."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic

from app.db import Sessions, reading
from app.errors import KeyNotFound, MissingScope, Unauthenticated
from app.keys import store
from app.keys.callers import Caller, anyone
from app.keys.models import AuditRow, KeyRow
from app.keys.oidc import OidcTokens
from app.keys.tokens import Token
from modelpress.contract.access import AuditEntry, AuditPage, IssuedKey, Key, KeyList, KeyRequest, Scope

OVER_ALL_TEAMS = frozenset({Scope.METRICS, Scope.OPERATE})
INVALID = "send a valid key as 'Authorization: Bearer mp_…'; this one is unknown, expired or revoked"
RECENT_SECONDS = 1.0
"""For how long a key that was found valid is not looked up again."""
MOST_RECENT = 10_000


@dataclass(frozen=True)
class Recent:
    """A key that was found valid."""

    sha256: str
    caller: Caller
    at: float


class KeyService:
    """The keys of all teams. Where the service is open, every caller is `anyone`."""

    def __init__(self, sessions: Sessions, *, is_open: bool, oidc: OidcTokens | None = None) -> None:
        self.sessions = sessions
        self.is_open = is_open
        self.oidc = oidc
        self.teams: set[str] = set()
        self.recent: dict[str, Recent] = {}

    def caller(self, text: str | None, request_id: str | None) -> Caller:
        """Return who sends this token: a key, or a token of the OpenID provider.

        Raises:
            Unauthenticated: that is nobody.
            IdentityProviderUnavailable: only the provider knows, and it does not answer.
        """
        if self.is_open:
            return anyone(request_id)
        if text is None:
            raise Unauthenticated("this service asks for a key: send 'Authorization: Bearer mp_…'")
        token = Token.parse(text)
        if token is None:
            return self.caller_by_provider(text, request_id)
        with reading(self.sessions) as session:
            row = store.valid_key(session, token.id)
            if row is None or not token.fits(row.sha256):
                raise Unauthenticated(INVALID)
            if store.is_stale(row.used_at, datetime.now(UTC)):
                store.note_use(session, row.id)
        caller = Caller(row.team, row.id, frozenset(map(Scope, row.scopes)), request_id)
        if len(self.recent) >= MOST_RECENT:
            self.recent.clear()
        self.recent[row.id] = Recent(row.sha256, caller, monotonic())
        return caller

    def recent_caller(self, text: str | None, request_id: str | None) -> Caller | None:
        """Return who sends a key that was valid within the last second; None where that has to be looked up."""
        token = None if text is None else Token.parse(text)
        known = None if token is None else self.recent.get(token.id)
        if known is None or token is None or monotonic() - known.at > RECENT_SECONDS or not token.fits(known.sha256):
            return None
        return replace(known.caller, request_id=request_id)

    def asks_provider(self, text: str | None) -> bool:
        """Return whether the OpenID provider may be asked for what is needed to tell who sends this token."""
        return not self.is_open and self.oidc is not None and text is not None and Token.parse(text) is None

    def caller_by_provider(self, text: str, request_id: str | None) -> Caller:
        """Return who sends a token of the provider. Its team is made when it is first named."""
        if self.oidc is None:
            raise Unauthenticated(INVALID)
        caller = self.oidc.caller(text, request_id)
        if caller.team not in self.teams:
            with self.sessions.begin() as session:
                store.add_team(session, caller.team)
            self.teams.add(caller.team)
        return caller

    def create(self, caller: Caller, request: KeyRequest) -> IssuedKey:
        """Make a key of the caller's team, and return it with its secret, which is shown this once."""
        for scope in sorted(OVER_ALL_TEAMS & request.scopes - caller.scopes):
            raise MissingScope(f"only a key with the scope '{scope}' makes another one with it")
        token = Token.make()
        with self.sessions.begin() as session:
            store.add_team(session, caller.team)
            row = store.add_key(session, token, caller.team, request.name, request.scopes, request.days)
            store.record(session, caller, "key.created", token.id, name=request.name, days=request.days)
            key = as_key(row)
        return IssuedKey(**dict(key), token=token.text)

    def list(self, caller: Caller) -> KeyList:
        """Return the keys of the caller's team."""
        with self.sessions() as session:
            return KeyList(keys=tuple(map(as_key, store.keys(session, caller.team))))

    def revoke(self, caller: Caller, key_id: str) -> Key:
        """Make a key of the caller's team useless, within RECENT_SECONDS for every process.

        Raises KeyNotFound where the team has no such key.
        """
        with self.sessions.begin() as session:
            row = store.revoke(session, caller.team, key_id)
            if row is None:
                raise KeyNotFound(f"the team {caller.team!r} has no key {key_id!r}")
            store.record(session, caller, "key.revoked", key_id)
            key = as_key(row)
        self.recent.pop(key_id, None)
        return key

    def audit(self, caller: Caller, before: int | None, limit: int) -> AuditPage:
        """Return what the caller's team has changed, newest first."""
        with self.sessions() as session:
            rows = store.audit(session, caller.team, before, limit + 1)
        shown = rows[:limit]
        return AuditPage(entries=tuple(map(as_entry, shown)), next=shown[-1].id if len(rows) > limit else None)


def as_key(row: KeyRow) -> Key:
    """Return the key of a row."""
    return Key(
        id=row.id,
        team=row.team,
        name=row.name,
        scopes=tuple(map(Scope, row.scopes)),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        used_at=row.used_at,
    )


def as_entry(row: AuditRow) -> AuditEntry:
    """Return the audit entry of a row."""
    return AuditEntry(
        id=row.id,
        at=row.at,
        key_id=row.key_id,
        action=row.action,
        subject=row.subject,
        request_id=row.request_id,
        detail=row.detail,
    )
