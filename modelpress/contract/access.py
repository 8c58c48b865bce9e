"""Keys, teams and the record of changes, as the API shows them."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from modelpress.contract.job import Answer


class Scope(StrEnum):
    """The kinds of calls that a key may make."""

    READ = "read"
    """Look at jobs and fetch results."""
    SUBMIT = "submit"
    """Post, cancel, retry and delete jobs."""
    ADMIN = "admin"
    """Make and revoke keys of the team, and read what was changed."""
    METRICS = "metrics"
    """Read how the service does, over all teams. As with `operate`, only a key with it makes another one with it."""
    OPERATE = "operate"
    """Drain workers, which all teams share."""


def check_scopes(scopes: object) -> object:
    """Return the scopes; raise ValueError if one is listed twice."""
    if isinstance(scopes, list) and len({str(scope) for scope in scopes}) < len(scopes):
        raise ValueError("name each scope once")
    return scopes


class KeyRequest(BaseModel):
    """The body of `POST /keys`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]*$", description="what the key is for")
    scopes: Annotated[frozenset[Scope], BeforeValidator(check_scopes)] = Field(
        frozenset({Scope.READ, Scope.SUBMIT}), min_length=1
    )
    days: int | None = Field(None, ge=1, le=3650, description="days after which it expires; null: never")


class Key(Answer):
    """A key of the team, without its secret."""

    id: str
    team: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    used_at: datetime | None = Field(None, description="last use, to the minute")


class IssuedKey(Key):
    """A key that was just made."""

    token: str = Field(description="send it as `Authorization: Bearer …`; it is shown now and never again")


class KeyList(Answer):
    """All keys of the team, newest first."""

    keys: tuple[Key, ...]


class Usage(Answer):
    """Amount of one resource that a team uses, and its limit."""

    used: int
    limit: int | None = Field(description="null: no limit")


class Team(Answer):
    """The team of the caller, and its limits."""

    name: str
    queued: Usage = Field(description="jobs that wait")
    running: Usage = Field(description="jobs that are computed at the same time")
    stored_bytes: Usage = Field(description="bytes of finished files and uploads")


class AuditEntry(Answer):
    """Something that was changed."""

    id: int
    at: datetime
    key_id: str | None = Field(description="the key that was used; null: the operator, or a service without keys")
    action: str = Field(description="such as `job.submitted` or `key.revoked`")
    subject: str = Field(description="id of the job or key, or name of the team")
    request_id: str | None = None
    detail: dict[str, str | int | None] = Field(default_factory=dict)


class AuditPage(Answer):
    """One page of the record, newest first."""

    entries: tuple[AuditEntry, ...]
    next: int | None = Field(None, description="send as ?before= for the next page; null on the last one")
