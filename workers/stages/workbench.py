"""Durable results of stages, so that an attempt goes on where the one before it was stopped.

Each attempt writes below its own number and reads what any attempt has finished. A result counts once its record has
been written by rename; the record names the fingerprint of the inputs and the SHA-256 of every file, so a result of
other inputs, a half-written one or a damaged one is computed again.
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from workers.compression.spec.files import file_sha256, sync

RECORD = "record.json"


class Record(BaseModel):
    """Written last: what was computed, from what, into which files."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    sha256: dict[str, str]


Verified = dict[Path, tuple[str, int, int]]
"""Digest, size in bytes and time of change of each file that was verified."""


class Workbench:
    """The results of one job's stages, as one attempt reads and writes them. A file's digest is verified once."""

    def __init__(
        self, root: Path, attempt: int, fingerprint: str, folder: str = "", verified: Verified | None = None
    ) -> None:
        """
        Args:
            root: the job's work directory.
            fingerprint: of everything that the results depend on.
            folder: where the results lie in the directory of an attempt.
            verified: the files whose digest was found right in this process, and what they looked like then.
        """
        self.root = root
        self.attempt = attempt
        self.fingerprint = fingerprint
        self.folder = folder
        self.verified: Verified = {} if verified is None else verified

    def inside(self, folder: str) -> "Workbench":
        """Return the bench of other results of the same names, in a folder of their own; "" is the job's own."""
        return Workbench(self.root, self.attempt, self.fingerprint, folder, self.verified)

    def finished(self, name: str) -> Path | None:
        """The directory with the whole result of `name`, from the newest attempt that has one."""
        for attempt in self.attempts():
            directory = self.place(attempt, name)
            record = read_record(directory / RECORD)
            if record is not None and self.holds(directory, record):
                return directory
        return None

    def begin(self, name: str) -> Path:
        """An empty directory for a result of this attempt."""
        directory = self.place(self.attempt, name)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def finish(self, name: str) -> Path:
        """Make the result durable."""
        directory = self.place(self.attempt, name)
        files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != RECORD]
        self.record(directory / RECORD, directory, files)
        return directory

    def finished_part(self, name: str, part: str) -> Path | None:
        """One part of a result that is made in parts: the path that was given to `finish_part`."""
        for attempt in self.attempts():
            path = self.place(attempt, name) / part
            record = read_record(path.with_name(f"{part}.{RECORD}"))
            if record is not None and self.holds(path.parent, record):
                return path
        return None

    def part(self, name: str, part: str) -> Path:
        """Return a finished part of a result. Raises FileNotFoundError."""
        path = self.finished_part(name, part)
        if path is None:
            raise FileNotFoundError(f"{part} of the stage {name} is gone")
        return path

    def finish_part(self, path: Path) -> None:
        self.record(path.with_name(f"{path.name}.{RECORD}"), path.parent, [path])

    def parts(self, name: str) -> list[str]:
        """The parts of a result that any attempt has recorded, in the order of their names; they may be damaged."""
        suffix = f".{RECORD}"
        records = {path.name for attempt in self.attempts() for path in self.place(attempt, name).glob(f"*{suffix}")}
        return sorted(record.removesuffix(suffix) for record in records)

    def discard_part(self, name: str, part: str) -> None:
        """Remove a part of this attempt and of those before it."""
        for attempt in self.attempts():
            if attempt <= self.attempt:
                (self.place(attempt, name) / f"{part}.{RECORD}").unlink(missing_ok=True)
                (self.place(attempt, name) / part).unlink(missing_ok=True)

    def place(self, attempt: int, name: str) -> Path:
        return self.root / str(attempt) / self.folder / name

    def attempts(self) -> list[int]:
        """The newest first."""
        numbers = (
            [int(path.name) for path in self.root.iterdir() if path.name.isdecimal()] if self.root.exists() else []
        )
        return sorted(numbers, reverse=True)

    def holds(self, directory: Path, record: Record) -> bool:
        """Return whether the files of a record are there, unchanged and made of this job's inputs."""
        return record.fingerprint == self.fingerprint and all(
            self.is_whole(directory / name, digest) for name, digest in record.sha256.items()
        )

    def is_whole(self, path: Path, digest: str) -> bool:
        """Return whether the file has the digest; it is read again only where it has changed since it last had it."""
        try:
            found = path.stat()
        except OSError:
            return False
        seen = (digest, found.st_size, found.st_mtime_ns)
        if self.verified.get(path) != seen and path.is_file() and file_sha256(path) == digest:
            self.verified[path] = seen
        return self.verified.get(path) == seen

    def record(self, path: Path, directory: Path, files: list[Path]) -> None:
        for file in files:
            sync(file)
        digests = {str(file.relative_to(directory)): file_sha256(file) for file in files}
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(Record(fingerprint=self.fingerprint, sha256=digests).model_dump_json())
        sync(unfinished)
        unfinished.replace(path)
        sync(directory)


def read_record(path: Path) -> Record | None:
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def fingerprint(inputs: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def directory_identity(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file: enough to notice that a local model was replaced."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
