"""Keys of the caller's team, its limits, and what it has changed."""

from typing import Annotated

from fastapi import APIRouter, Query, status

from app.api.deps import Administrator, Keys, Name, Reading
from app.api.documentation import refusals
from modelpress.contract.access import AuditPage, IssuedKey, Key, KeyList, KeyRequest, Team

router = APIRouter(tags=["access"])


@router.post(
    "/keys",
    status_code=status.HTTP_201_CREATED,
    operation_id="create_key",
    responses=refusals(400, 401, 403, 413, 415, 422),
)
def create_key(request: KeyRequest, caller: Administrator, keys: Keys) -> IssuedKey:
    """Make a key of the team. Its `token` is shown in this answer and never again."""
    return keys.create(caller, request)


@router.get("/keys", operation_id="list_keys", responses=refusals(401, 403))
def list_keys(caller: Administrator, keys: Keys) -> KeyList:
    """List the keys of the team, newest first, without their secrets."""
    return keys.list(caller)


@router.delete("/keys/{key_id}", operation_id="revoke_key", responses=refusals(401, 403, 404, 422))
def revoke_key(key_id: Name, caller: Administrator, keys: Keys) -> Key:
    """Make a key useless, within a second everywhere. It stays in the list, with the time it was revoked."""
    return keys.revoke(caller, key_id)


@router.get("/audit", operation_id="list_changes", responses=refusals(401, 403, 422))
def list_changes(
    caller: Administrator,
    keys: Keys,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> AuditPage:
    """List what the team has changed, newest first."""
    return keys.audit(caller, before, limit)


@router.get("/team", operation_id="get_team", responses=refusals(401, 403))
def get_team(service: Reading) -> Team:
    """Return the team of the caller: what it uses and may use."""
    return service.team()
