"""Text that a team has brought along, copied from the storage to where this worker's children read it."""

import hashlib
import secrets
from pathlib import Path

from app.db import Sessions
from app.errors import UnknownDataset
from app.jobs import uploads
from app.jobs.models import UploadRow
from app.storage import Storage
from modelpress.contract.codes import FailureCode
from modelpress.contract.recipe import Recipe
from modelpress.contract.upload import UPLOAD
from modelpress.errors import ModelpressError
from modelpress.spec.files import sync
from workers.messages import FETCH_STAGE, AttemptFailed


def bring(sessions: Sessions, storage: Storage, directory: Path, job_id: str, recipe: Recipe) -> dict[str, Path]:
    """Return the file of each upload that a recipe names; those that are not in `directory` yet are copied there.

    Raises:
        AttemptFailed: the team has deleted one, or the storage has changed it.
    """
    files: dict[str, Path] = {}
    for field, reference in recipe.texts():
        if UPLOAD.fullmatch(reference) and reference not in files:
            try:
                with sessions() as session:
                    row = uploads.find(session, uploads.owner_of(session, job_id), reference, field)
                files[reference] = copied(storage, row, directory / f"{reference}.{row.format}")
            except UnknownDataset as error:
                raise AttemptFailed(FailureCode.UNKNOWN_DATASET, error.message, FETCH_STAGE) from error
            except ModelpressError as error:
                raise AttemptFailed(FailureCode.STORAGE_FAILED, error.message, FETCH_STAGE) from error
    return files


def copied(storage: Storage, row: UploadRow, final: Path) -> Path:
    """Return the local copy of an upload, which appears by one rename. Raises AttemptFailed for another digest."""
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    incomplete = final.with_name(f"{final.name}.{secrets.token_hex(4)}")  # others may copy the same meanwhile
    digest = hashlib.sha256()
    chunks = storage.open(row.id, uploads.ATTEMPT, uploads.file_name(row), 0, row.bytes)
    try:
        with incomplete.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
    finally:
        chunks.close()
    if digest.hexdigest() != row.sha256:
        incomplete.unlink()
        raise AttemptFailed(FailureCode.STORAGE_FAILED, f"the stored '{row.id}' has another SHA-256", FETCH_STAGE)
    sync(incomplete)
    incomplete.rename(final)
    return final
