"""For which job an Idempotency-Key was sent, so that a request that is repeated makes no second job.

Every function takes a session and never commits.
"""

import hashlib
import json

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.clock import clock, seconds
from app.errors import KeyReused
from app.jobs.models import IdempotencyRow
from modelpress.contract.recipe import Recipe

KEEP_SECONDS = 24 * 3600.0


def fingerprint(recipe: Recipe) -> str:
    """Return a hash of what was sent, whatever its spacing and the order of its fields."""
    sent = recipe.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


def earlier_job(session: Session, owner: str, key: str, recipe: Recipe) -> str | None:
    """Return the job that was posted with this key, or None. Raises KeyReused where its recipe was another one."""
    row = session.execute(
        select(IdempotencyRow.fingerprint, IdempotencyRow.job_id).where(
            IdempotencyRow.owner == owner,
            IdempotencyRow.key == key,
            IdempotencyRow.created_at > clock() - seconds(KEEP_SECONDS),
        )
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint(recipe):
        raise KeyReused(
            "Idempotency-Key",
            f"this key was sent with another recipe, for the job {row.job_id}; send a new key with a new recipe",
        )
    return str(row.job_id)


def take(session: Session, owner: str, key: str, recipe: Recipe, job_id: str) -> bool:
    """Return whether the key is now that of this job: of any number of requests at once, for exactly one."""
    statement = insert(IdempotencyRow).values(
        owner=owner, key=key, fingerprint=fingerprint(recipe), job_id=job_id, created_at=clock()
    )
    taken = session.execute(
        statement.on_conflict_do_update(
            index_elements=[IdempotencyRow.owner, IdempotencyRow.key],
            set_={name: statement.excluded[name] for name in ("fingerprint", "job_id", "created_at")},
            where=IdempotencyRow.created_at <= clock() - seconds(KEEP_SECONDS),
        ).returning(IdempotencyRow.job_id)
    ).one_or_none()
    return taken is not None


def forget(session: Session) -> None:
    """Delete the keys that have expired."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at <= clock() - seconds(KEEP_SECONDS)))
