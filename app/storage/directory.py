"""Published files in a directory: `<root>/<job_id>/<attempt>/<name>`, beside a manifest that clients never see.

The files of an attempt appear by one rename of their directory, after each has been written to disk and hashed; so what
has its place there is complete, also after a crash at any moment.
"""

import errno
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit

from app.errors import ArtifactNotFound
from app.storage import Chunks, FilePart, InvalidNameError, StoredFile, check_name, list_names, media_type
from modelpress.spec.files import file_sha256, mark, sync

MANIFEST = ".manifest.json"
OWNER = ".database"
ASIDE = ".quarantine"
CHUNK_BYTES = 1 << 18


class DirectoryStorage:
    """A `Storage` in a directory that API and workers share.

    Attempts of a job cannot disturb each other, since each writes under its own number.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def at(cls, url: str) -> Self:
        """Return the storage of a `file:///directory` URL."""
        return cls(Path(unquote(urlsplit(url).path)))

    def publish(self, job_id: str, attempt: int, directory: Path) -> tuple[StoredFile, ...]:
        place = self._place(job_id, attempt)
        if not place.is_dir():
            incoming = place.with_name(f".incoming-{attempt}")
            bring(directory, incoming)
            files = tuple(describe(incoming, name) for name in list_names(incoming, but=MANIFEST))
            write_manifest(incoming, files)
            incoming.rename(place)
            sync(place.parent)
            sync(self.root)
        shutil.rmtree(directory, ignore_errors=True)
        return read_manifest(place)

    def exists(self, job_id: str, attempt: int, name: str) -> bool:
        try:
            return (self._place(job_id, attempt) / check_name(name)).is_file()
        except InvalidNameError:
            return False

    def open(self, job_id: str, attempt: int, name: str, start: int, stop: int) -> Chunks:
        # The file is opened here and not at the first chunk, so that discarding it does not disturb the reader.
        try:
            file = (self._place(job_id, attempt) / check_name(name)).open("rb")
        except (InvalidNameError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ArtifactNotFound(f"there is no file {name!r} of this job") from None
        return FileRange(file, start, stop)

    def link(self, job_id: str, attempt: int, name: str, seconds: float) -> str | None:
        return None

    def attempts(self) -> list[tuple[str, int]]:
        entries = self.root.iterdir() if self.root.is_dir() else ()
        jobs = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        places = [(job.name, place.name.rpartition("-")[2]) for job in jobs for place in job.iterdir()]
        return sorted({(job, int(attempt)) for job, attempt in places if attempt.isdecimal()})

    def discard(self, job_id: str, attempt: int) -> None:
        place = self._place(job_id, attempt)
        discarded = place.with_name(f".discarded-{attempt}")
        for remains in (discarded, place.with_name(f".incoming-{attempt}")):
            shutil.rmtree(remains, ignore_errors=True)
        if place.exists():
            place.rename(discarded)
            shutil.rmtree(discarded, ignore_errors=True)
        if place.parent.is_dir() and not any(place.parent.iterdir()):
            place.parent.rmdir()

    def set_aside(self, job_id: str, attempt: int) -> None:
        place = self._place(job_id, attempt)
        aside = self.root / ASIDE / job_id / place.name
        aside.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place.rename(aside)
        self.discard(job_id, attempt)

    def owner(self, identity: str) -> str:
        return mark(self.root / OWNER, identity)

    def _place(self, job_id: str, attempt: int) -> Path:
        if "/" in check_name(job_id):
            raise InvalidNameError("a job id has one part")
        return self.root / job_id / str(int(attempt))


def bring(directory: Path, incoming: Path) -> None:
    """Move a directory to where it can be renamed from; across file systems by a copy.

    When the directory is gone and `incoming` is there, an interrupted call had already moved it.
    """
    if not directory.is_dir() and incoming.is_dir():
        return
    incoming.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        directory.rename(incoming)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(directory, incoming, symlinks=True)


def describe(directory: Path, name: str) -> StoredFile:
    """Return size and digest of a file, and see to it that it is on the disk."""
    path = directory / name
    sync(path)
    sync(path.parent)
    return StoredFile(name, path.stat().st_size, file_sha256(path), media_type(name))


def write_manifest(directory: Path, files: tuple[StoredFile, ...]) -> None:
    (directory / MANIFEST).write_text(json.dumps({"files": [asdict(stored) for stored in files]}, indent=1))
    sync(directory / MANIFEST)
    sync(directory)


def read_manifest(directory: Path) -> tuple[StoredFile, ...]:
    manifest = json.loads((directory / MANIFEST).read_text())
    return tuple(StoredFile(**entry) for entry in manifest["files"])


class FileRange:
    """The bytes of an open file from `start` up to, not including, `stop`, in chunks; closes the file at their end."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self.file = file
        self.left = stop - start
        file.seek(start)

    @property
    def part(self) -> FilePart:
        position = self.file.tell()
        return FilePart(self.file.fileno(), position, position + self.left)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        chunk = self.file.read(min(CHUNK_BYTES, self.left)) if self.left > 0 else b""
        if not chunk:
            self.close()
            raise StopIteration
        self.left -= len(chunk)
        return chunk

    def close(self) -> None:
        """Close the file; also before the end."""
        self.left = 0
        self.file.close()
