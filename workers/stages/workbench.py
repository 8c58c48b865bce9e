"""Durable results of the stages, which let a new attempt continue where an earlier one stopped.

Each attempt writes to a directory named after its number, and reads what any attempt has finished. A result is finished
once its record has been renamed into place. The record holds the fingerprint of the inputs and the SHA-256 of every
file. A result that is half-written, damaged or made from other inputs is computed again.
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from modelpress.spec.files import file_sha256, sync

RECORD = "record.json"


class Record(BaseModel):
    """The record of a finished result: the fingerprint of its inputs, and the SHA-256 of each of its files.

    It is written last.
    """

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    sha256: dict[str, str]


Verified = dict[Path, tuple[str, int, int]]
"""Digest, size in bytes and modification time (ns) of each verified file."""


class Workbench:
    """The durable results of one job's stages, as one attempt reads and writes them. Each digest is verified once."""

    def __init__(
        self, root: Path, attempt: int, fingerprint: str, folder: str = "", verified: Verified | None = None
    ) -> None:
        """Open the results below `root`.

        Args:
            root: the job's work directory.
            attempt: number of the attempt that writes here.
            fingerprint: hash of everything that the results depend on.
            folder: where the results lie within the directory of an attempt.
            verified: digest, size and modification time of the files that this process has verified.
        """
        self.root = root
        self.attempt = attempt
        self.fingerprint = fingerprint
        self.folder = folder
        self.verified: Verified = {} if verified is None else verified

    def inside(self, folder: str) -> "Workbench":
        """Return the workbench for results in a folder of their own; "" is the job's own folder."""
        return Workbench(self.root, self.attempt, self.fingerprint, folder, self.verified)

    def finished(self, name: str) -> Path | None:
        """Return the directory with the finished result `name` of the newest attempt that has one, or None."""
        for attempt in self.attempts():
            directory = self.place(attempt, name)
            record = read_record(directory / RECORD)
            if record is not None and self.holds(directory, record):
                return directory
        return None

    def begin(self, name: str) -> Path:
        """Return this attempt's directory for the result `name`, creating it if it does not exist."""
        directory = self.place(self.attempt, name)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def finish(self, name: str) -> Path:
        """Record all files of the result `name` durably, and return its directory."""
        directory = self.place(self.attempt, name)
        files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != RECORD]
        self.record(directory / RECORD, directory, files)
        return directory

    def finished_part(self, name: str, part: str) -> Path | None:
        """Return the file of a finished part of the result `name`, from the newest attempt that has it, or None."""
        for attempt in self.attempts():
            path = self.place(attempt, name) / part
            record = read_record(path.with_name(f"{part}.{RECORD}"))
            if record is not None and self.holds(path.parent, record):
                return path
        return None

    def part(self, name: str, part: str) -> Path:
        """Return the file of a finished part of a result.

        Raises:
            FileNotFoundError: no attempt has it, or it is damaged.
        """
        path = self.finished_part(name, part)
        if path is None:
            raise FileNotFoundError(f"the file {part} of the stage {name} is missing or damaged")
        return path

    def finish_part(self, path: Path) -> None:
        """Record one file durably as a finished part of the result in whose directory it lies."""
        self.record(path.with_name(f"{path.name}.{RECORD}"), path.parent, [path])

    def parts(self, name: str) -> list[str]:
        """Return the names of the recorded parts of a result, sorted; their files may be damaged."""
        suffix = f".{RECORD}"
        records = {path.name for attempt in self.attempts() for path in self.place(attempt, name).glob(f"*{suffix}")}
        return sorted(record.removesuffix(suffix) for record in records)

    def discard_part(self, name: str, part: str) -> None:
        """Remove a part from the directories of this attempt and of earlier ones."""
        for attempt in self.attempts():
            if attempt <= self.attempt:
                (self.place(attempt, name) / f"{part}.{RECORD}").unlink(missing_ok=True)
                (self.place(attempt, name) / part).unlink(missing_ok=True)

    def place(self, attempt: int, name: str) -> Path:
        """Return the directory of the result `name` of an attempt."""
        return self.root / str(attempt) / self.folder / name

    def attempts(self) -> list[int]:
        """Return the numbers of all attempts that have a directory, the newest first."""
        numbers = (
            [int(path.name) for path in self.root.iterdir() if path.name.isdecimal()] if self.root.exists() else []
        )
        return sorted(numbers, reverse=True)

    def holds(self, directory: Path, record: Record) -> bool:
        """Return whether the record belongs to this job's inputs and all of its files are there, unchanged."""
        return record.fingerprint == self.fingerprint and all(
            self.is_whole(directory / name, digest) for name, digest in record.sha256.items()
        )

    def is_whole(self, path: Path, digest: str) -> bool:
        """Return whether the file has the digest; a verified file is read again only if it has changed since."""
        try:
            found = path.stat()
        except OSError:
            return False
        seen = (digest, found.st_size, found.st_mtime_ns)
        if self.verified.get(path) != seen and path.is_file() and file_sha256(path) == digest:
            self.verified[path] = seen
        return self.verified.get(path) == seen

    def record(self, path: Path, directory: Path, files: list[Path]) -> None:
        """Write the record of `files` to `path`, syncing the files, the record and the directory to disk."""
        for file in files:
            sync(file)
        digests = {str(file.relative_to(directory)): file_sha256(file) for file in files}
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(Record(fingerprint=self.fingerprint, sha256=digests).model_dump_json())
        sync(unfinished)
        unfinished.replace(path)
        sync(directory)


def read_record(path: Path) -> Record | None:
    """Return the record in a file, or None if there is none that can be read."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def fingerprint(inputs: dict[str, object]) -> str:
    """Return the SHA-256 of JSON values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def directory_identity(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time of each file: enough to notice that a local model was replaced."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
