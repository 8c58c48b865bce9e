"""Files of the hub on this disk: fetched once, resumed where they broke off, and kept only if their digest is right.

A model lies in `models/ORG--NAME/COMMIT/`. A name that is there is complete: what is being fetched lies beside it under
another name, is held by one process at a time, and becomes it by one rename.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from app.disk import require_room
from app.errors import DownloadCorrupted, HubUnavailable
from app.sources.checkpoint import companion_files, read_checkpoint, weight_files
from app.sources.hub import Hub, RemoteFile, Repository
from app.sources.unused import lock_of
from modelpress.spec.companions import check_companions, is_companion
from modelpress.spec.files import file_sha256, sync
from modelpress.spec.inventory import inventory

PROGRESS_SECONDS = 0.5

Result = TypeVar("Result")
Progress = Callable[[float, str], None]
"""Called with the fraction that is done (0 where that is not known) and a description of what is going on."""


class Downloads:
    def __init__(
        self, hub: Hub, directory: Path, retry_delays: tuple[float, ...], progress: Progress, reserved_bytes: int = 0
    ) -> None:
        """Fetch into `directory`.

        Args:
            retry_delays: seconds to wait before each further try when the hub fails.
            reserved_bytes: what stays free on the disk.
        """
        self.hub = hub
        self.directory = directory
        self.retry_delays = retry_delays
        self.progress = progress
        self.reserved_bytes = reserved_bytes

    def model(self, name: str, commit: str) -> Path:
        """Return the directory of a model at a commit: weights, config, tokenizer, licence.

        Raises:
            NotOnHub, HubUnavailable: it cannot be had, for good or for now.
            DownloadCorrupted: a file's digest is wrong.
            MalformedModel, MissingWeights, NeedsRemoteCode: it is not what can be opened here.
        """
        final = self.directory / "models" / folder_name(name) / commit
        with self.claimed(final) as missing:
            if missing:
                repository = self.patiently(lambda: self.hub.repository("model", name, commit))
                partial = final.with_name(f"{commit}.partial")
                self.files(repository, companion_files(repository), partial)
                self.files(repository, weight_files(repository, partial), partial)
                check_downloaded(partial)
                partial.rename(final)
        return final

    def files(self, repository: Repository, files: tuple[RemoteFile, ...], directory: Path) -> None:
        """Put these files of a repository into a directory, each under the last part of its name; only named chat
        templates keep their folder."""
        directory.mkdir(parents=True, exist_ok=True)
        meter = Meter(self.progress, sum(file.bytes for file in files))
        for file in files:
            kept = is_companion(file.name)
            self.file(repository, file, directory / (file.name if kept else Path(file.name).name), meter)

    def file(self, repository: Repository, file: RemoteFile, target: Path, meter: "Meter") -> None:
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            meter.add(file.bytes, file.name)
            return
        incomplete = target.with_name(f"{target.name}.incomplete")
        incomplete.touch()
        require_room(target.parent, file.bytes - incomplete.stat().st_size, self.reserved_bytes)
        meter.add(incomplete.stat().st_size, file.name)
        self.patiently(lambda: self.receive(repository, file, incomplete, meter))
        if not is_intact(incomplete, file):
            incomplete.unlink()
            raise DownloadCorrupted(f"'{file.name}' of '{repository.name}' arrived damaged; it was thrown away")
        incomplete.rename(target)

    def receive(self, repository: Repository, file: RemoteFile, incomplete: Path, meter: "Meter") -> None:
        """Append what is still missing of a file."""
        start = incomplete.stat().st_size
        if start >= file.bytes:
            return
        with incomplete.open("ab") as target, self.hub.stream(repository, file, start, file.bytes) as chunks:
            for chunk in chunks:
                target.write(chunk)
                meter.add(len(chunk), file.name)
        sync(incomplete)

    def patiently(self, action: Callable[[], Result]) -> Result:
        for delay in self.retry_delays:
            try:
                return action()
            except HubUnavailable as error:
                self.progress(0.0, f"{error.message} Trying again in {delay:g} s.")
                time.sleep(delay)
        return action()

    @contextmanager
    def claimed(self, final: Path) -> Iterator[bool]:
        """Hold the right to make `final`, which counts as used now; yields whether it is still to be made."""
        final.parent.mkdir(parents=True, exist_ok=True)
        with lock_of(final).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.progress(0.0, "waiting for another job that fetches the same")
                fcntl.flock(lock, fcntl.LOCK_EX)
            missing = not final.exists()
            yield missing
            with suppress(FileNotFoundError):
                os.utime(final)


class Meter:
    """Adds up bytes and reports them, not more often than anybody wants to read."""

    def __init__(self, progress: Progress, total_bytes: int) -> None:
        self.progress = progress
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self.quiet_until = 0.0

    def add(self, count: int, name: str) -> None:
        self.done_bytes += count
        if time.monotonic() >= self.quiet_until:
            self.quiet_until = time.monotonic() + PROGRESS_SECONDS
            megabytes = f"{self.done_bytes / 1e6:.0f} of {self.total_bytes / 1e6:.0f} MB"
            self.progress(self.done_bytes / max(self.total_bytes, 1), f"downloading {name}, {megabytes}")


def is_intact(path: Path, file: RemoteFile) -> bool:
    """Return whether the content has the size and the digest that the hub lists."""
    if path.stat().st_size != file.bytes:
        return False
    if file.sha256 is not None:
        return file_sha256(path) == file.sha256
    if file.blob is not None:
        return git_blob(path, file.bytes) == file.blob
    return True


def git_blob(path: Path, size: int) -> str:
    """Return the id that Git gives a file: a SHA-1 of its size and its content."""
    with path.open("rb") as content:
        return hashlib.file_digest(
            content, lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        ).hexdigest()


def check_downloaded(directory: Path) -> None:
    """Read a model's files as those of a local one. Raises MissingWeights, MalformedModel, NeedsRemoteCode."""
    checkpoint = read_checkpoint(directory)
    found = inventory(checkpoint.config, checkpoint.shapes)
    check_companions(directory, found.vocab_size)


def folder_name(repository: str) -> str:
    """Unambiguous, since no name on the hub contains two hyphens in a row."""
    return repository.replace("/", "--")
