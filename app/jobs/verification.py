"""Whether the files of finished jobs and of uploads are still what the database says of them, as after a restore."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import select

from app.db import Sessions
from app.errors import ArtifactNotFound
from app.jobs import ownership, uploads
from app.jobs.models import ArtifactRow, UploadRow
from app.storage import Storage
from modelpress.contract.upload import UPLOAD

Progress = Callable[[int, int], None]
"""Called with the number of bytes that are checked, and of all there are to check."""


@dataclass(frozen=True)
class Recorded:
    """A file as the database has it; `job_id` is the upload's where it is one."""

    job_id: str
    attempt: int
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Damage:
    """A file that is not as the database has it, and in which way."""

    job_id: str
    name: str
    what: str


@dataclass(frozen=True)
class Verification:
    """The result of comparing storage and database.

    Attributes:
        jobs: number of jobs that have files.
        uploads: number of complete uploads.
        files: number of files that were compared.
        bytes: their size, as the database has it.
        damages: files that are missing, changed or unreadable.
        unknown: jobs that have files here and that the database does not know.
    """

    jobs: int
    uploads: int
    files: int
    bytes: int
    damages: tuple[Damage, ...]
    unknown: tuple[str, ...]


def verify(sessions: Sessions, storage: Storage, progress: Progress = lambda done, of: None) -> Verification:
    """Read every file of every finished job and every upload, and compare its size and digest with the database.

    Nothing is changed, and the service may run meanwhile: what is deleted while this runs is no damage.
    """
    with sessions() as session:
        kept = storage.attempts()
        unknown = ownership.unknown(session, [job_id for job_id, _ in kept])
        sent = list(map(as_recorded, uploads.complete_ones(session)))
        files = recorded(session.scalars(select(ArtifactRow).order_by(ArtifactRow.job_id, ArtifactRow.name))) + sent
    total, done, damages = sum(file.bytes for file in files), 0, []
    for file in files:
        what = damage(storage, file)
        if what is not None and is_recorded(sessions, file):
            damages.append(Damage(file.job_id, file.name, what))
        done += file.bytes
        progress(done, total)
    return Verification(
        jobs=len({file.job_id for file in files}) - len(sent),
        uploads=len(sent),
        files=len(files),
        bytes=total,
        damages=tuple(damages),
        unknown=tuple(sorted(unknown)),
    )


def recorded(rows: Iterable[ArtifactRow]) -> list[Recorded]:
    """Return the files that rows describe."""
    return [Recorded(row.job_id, row.attempt, row.name, row.bytes, row.sha256) for row in rows]


def as_recorded(row: UploadRow) -> Recorded:
    """Return the file of a complete upload."""
    return Recorded(row.id, uploads.ATTEMPT, uploads.file_name(row), row.bytes, str(row.sha256))


def is_recorded(sessions: Sessions, file: Recorded) -> bool:
    """Return whether the database still has the file."""
    with sessions() as session:
        if UPLOAD.fullmatch(file.job_id):
            return session.get(UploadRow, file.job_id) is not None
        row = session.get(ArtifactRow, (file.job_id, file.name))
        return row is not None and row.attempt == file.attempt


def damage(storage: Storage, file: Recorded) -> str | None:
    """Return in which way a stored file differs from what is recorded; None if it does not."""
    try:
        size, sha256 = measured(storage, file)
    except ArtifactNotFound:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if size != file.bytes:
        return f"has {size} of {file.bytes} bytes" if size < file.bytes else f"has more than {file.bytes} bytes"
    return None if sha256 == file.sha256 else f"has the SHA-256 {sha256} in place of {file.sha256}"


def measured(storage: Storage, file: Recorded) -> tuple[int, str]:
    """Return the size of a stored file, of which one byte too many is read, and the SHA-256 of what was read."""
    digest, size = hashlib.sha256(), 0
    if file.bytes == 0 and not storage.exists(file.job_id, file.attempt, file.name):
        raise ArtifactNotFound(f"there is no file {file.name!r} of this job")
    for chunk in storage.open(file.job_id, file.attempt, file.name, 0, file.bytes + 1) if file.bytes else ():
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()
