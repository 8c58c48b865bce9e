"""What can be done with the text of a team: announce, send, list, delete.

The pieces are gathered in a directory of this process's disk. A whole file is checked, and given to the storage that
holds finished checkpoints, too. So what a worker reads never changes, and lies where the worker finds it.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from sqlalchemy.orm import Session

from app.db import Sessions
from app.disk import lack_of_room
from app.errors import StorageUnavailable, UploadBusy, UploadInUse, UploadNotFound, UploadTooLarge, WrongOffset
from app.jobs import quotas, uploads
from app.jobs.models import UploadRow
from app.jobs.views import read_cursor, write_cursor
from app.keys import store as keys
from app.keys.callers import Caller
from app.settings import Settings
from app.sources.text import complaint_about_whole
from app.storage import Storage
from modelpress.contract.upload import Upload, UploadList, UploadRequest
from modelpress.errors import Refused
from modelpress.spec.files import file_sha256


class Part:
    """An unfinished upload, open for appending. It is locked, so nobody else appends to it meanwhile."""

    def __init__(self, file: FileIO | None, wanted: int, received: int) -> None:
        self.file = file
        self.wanted = wanted
        self.received = received

    def append(self, data: bytes) -> None:
        """Write more of the file. Raises UploadTooLarge where that is more than was announced."""
        if self.received + len(data) > self.wanted:
            raise UploadTooLarge(f"{self.wanted} bytes were announced, and more are sent")
        while data and self.file is not None:
            written = self.file.write(data)
            self.received += written
            data = data[written:]


def open_existing(path: str, flags: int) -> int:
    """Return a descriptor of a file that is there. Raises FileNotFoundError where it is not."""
    return os.open(path, flags & ~os.O_CREAT)


class UploadService:
    """The text of one team, on behalf of one caller. Each method commits before it returns."""

    def __init__(self, settings: Settings, sessions: Sessions, storage: Storage, caller: Caller) -> None:
        self.settings = settings
        self.sessions = sessions
        self.storage = storage
        self.caller = caller

    def begin(self, request: UploadRequest) -> tuple[Upload, bool]:
        """Return a new upload and True, or the team's upload that was announced with the same digest and False.

        Raises:
            Refused: the file is larger than the operator allows.
            QuotaExceeded: the team would store more than it may.
        """
        if request.bytes > (most := self.settings.max_upload_bytes):
            raise Refused("bytes", f"this service takes files of up to {most:,} bytes")
        if lack := lack_of_room(self.directory, request.bytes, self.settings.reserved_disk_bytes):
            raise Refused("bytes", lack)
        self.clear()
        with self.sessions.begin() as session:
            keys.add_team(session, self.caller.team)
            if request.sha256 is not None:
                earlier = uploads.known(session, self.caller.team, request.sha256, request.format)
                if earlier is not None and earlier.bytes == request.bytes:
                    return self.shown(earlier), False
            quotas.check_storing(session, self.caller.team, request.bytes)
            row = uploads.add(session, f"upload_{secrets.token_hex(12)}", self.caller.team, request)
            keys.record(session, self.caller, "upload.begun", row.id, name=request.name)
            return self.shown(row), True

    def get(self, upload_id: str) -> Upload:
        """Return an upload. Raises UploadNotFound where the team has none of this id."""
        with self.sessions.begin() as session:
            return self.shown(self.row(session, upload_id))

    def page(self, after: str | None, limit: int) -> UploadList:
        """Return uploads of the team, newest first. `after` is the `next` of the page before."""
        start = None if after is None else read_cursor(after)
        with self.sessions() as session:
            rows = uploads.page(session, self.caller.team, start, limit + 1)
            shown = tuple(map(self.shown, rows[:limit]))
            return UploadList(uploads=shown, next=write_cursor(rows[limit - 1]) if len(rows) > limit else None)

    @contextmanager
    def part(self, upload_id: str, offset: int) -> Iterator[Part]:
        """Open an upload for the piece that begins at `offset`; what was written by the end of the block is kept.

        Where the whole file has arrived, and was not checked and kept for want of something, the piece is empty.

        Raises:
            UploadNotFound: the team has none of this id.
            WrongOffset: the next piece begins elsewhere.
            UploadBusy: another request is sending a piece.
            StorageUnavailable: what is missing does not fit on the disk.
        """
        with self.sessions.begin() as session:
            row = self.row(session, upload_id)
            received = self.received(row)
            wanted, path, is_complete = row.bytes, self.path(row), row.completed_at is not None
        if offset != received:
            raise WrongOffset(f"{received} bytes have arrived, so the next piece begins there", received)
        if is_complete:
            raise WrongOffset("the whole file has arrived", received)
        if lack := lack_of_room(self.directory, wanted - received, self.settings.reserved_disk_bytes):
            raise StorageUnavailable(lack)
        with self.locked(path, offset) as file:
            yield Part(file, wanted, received)

    @contextmanager
    def locked(self, path: Path, offset: int) -> Iterator[FileIO | None]:
        """Open the file of `offset` bytes that nobody else appends to meanwhile; None where the storage has it."""
        if offset == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Made anew only where it begins: one that is gone has been given to the storage, or deleted.
            file = FileIO(path, "ab", opener=None if offset == 0 else open_existing)
        except FileNotFoundError:
            yield None
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UploadBusy("another request is sending a piece of this file") from None
            if (size := os.fstat(file.fileno()).st_size) != offset:
                raise WrongOffset(f"{size} bytes have arrived, so the next piece begins there", size)
            yield file

    def conclude(self, upload_id: str) -> Upload:
        """Return the upload after a piece has arrived. A whole file is checked and kept, once for each team.

        Raises:
            Refused: it is no text of its format, or has another digest; the upload is gone.
        """
        with self.sessions() as session:
            row = session.get(UploadRow, upload_id)
            if row is None:  # deleted while a piece arrived, which has made the directory anew
                shutil.rmtree(self.directory / upload_id, ignore_errors=True)
            if row is None or row.completed_at is not None or self.received(row) < row.bytes:
                return self.get(upload_id)
            path, announced, form = self.path(row), row.sha256, row.format
        if path.exists():
            sha256 = file_sha256(path)
            self.check(upload_id, path, sha256, announced)
        else:  # an earlier call has given it to the storage, and did not come to write that down
            sha256 = self.stored_digest(upload_id)
        self.storage.publish(upload_id, uploads.ATTEMPT, path.parent)
        with self.sessions.begin() as session:
            keys.team(session, self.caller.team)
            earlier = uploads.complete_with(session, self.caller.team, sha256, form)
            if earlier is None:
                uploads.complete(session, upload_id, sha256)
                keys.record(session, self.caller, "upload.completed", upload_id, sha256=sha256)
            elif earlier.id != upload_id:
                uploads.remove(session, upload_id)
        return self.get(upload_id if earlier is None else earlier.id)

    def check(self, upload_id: str, path: Path, sha256: str, announced: str | None) -> None:
        """Raise Refused, and let go of the upload, where the file is not what it should be."""
        fault = None
        if announced not in (None, sha256):
            fault = Refused("sha256", f"the file that arrived has the SHA-256 {sha256}; send it again from the start")
        elif complaint := complaint_about_whole(path):
            fault = Refused("format", f"the file {complaint}")
        if fault is not None:
            self.delete(upload_id)
            raise fault

    def stored_digest(self, upload_id: str) -> str:
        """Return the digest of what the storage holds for an upload."""
        (file,) = self.storage.publish(upload_id, uploads.ATTEMPT, self.directory / upload_id)
        return file.sha256

    def delete(self, upload_id: str) -> None:
        """Delete an upload.

        Raises:
            UploadNotFound: the team has none of this id.
            UploadInUse: a job that has not ended names it.
        """
        with self.sessions.begin() as session:
            row = self.row(session, upload_id)
            if needing := uploads.jobs_that_need(session, self.caller.team, upload_id):
                raise UploadInUse(f"the job {needing[0]} needs it; cancel that first, or wait for its end")
            uploads.remove(session, upload_id)
            keys.record(session, self.caller, "upload.deleted", upload_id, name=row.name)
        shutil.rmtree(self.directory / upload_id, ignore_errors=True)
        self.storage.discard(upload_id, uploads.ATTEMPT)

    def clear(self) -> None:
        """Delete uploads that were begun long ago and never completed."""
        with self.sessions.begin() as session:
            abandoned = uploads.abandoned(session, self.settings.keep_work_seconds)
            for upload_id in abandoned:
                uploads.remove(session, upload_id)
        for upload_id in abandoned:
            shutil.rmtree(self.directory / upload_id, ignore_errors=True)

    def row(self, session: Session, upload_id: str) -> UploadRow:
        """Return the row of an upload of this team. Raises UploadNotFound for that of another team, too."""
        row = uploads.get(session, upload_id, self.caller.team)
        if row is None:
            raise UploadNotFound(f"no upload has the id {upload_id!r}")
        return row

    def shown(self, row: UploadRow) -> Upload:
        """Return the upload of a row."""
        return Upload(
            id=row.id,
            name=row.name,
            format=row.format,
            bytes=row.bytes,
            received=self.received(row),
            sha256=row.sha256,
            created_at=row.created_at,
            completed_at=row.completed_at,
        )

    def received(self, row: UploadRow) -> int:
        """Return how many bytes have arrived."""
        if row.completed_at is not None:
            return row.bytes
        path = self.path(row)
        if path.exists():
            return path.stat().st_size
        return row.bytes if self.storage.exists(row.id, uploads.ATTEMPT, uploads.file_name(row)) else 0

    def path(self, row: UploadRow) -> Path:
        """Return where the pieces are gathered."""
        return self.directory / row.id / uploads.file_name(row)

    @property
    def directory(self) -> Path:
        """Return the directory of all uploads that are on their way."""
        return self.settings.uploads_dir
