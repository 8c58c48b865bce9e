"""Where finished files are kept. The API and the workers know them by job, attempt and name, never by path.

`Storage` is what a backend offers. `app.storage.registry` lists the backends and opens the one that the settings name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

NAME_LIMIT = 200
NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")

MEDIA_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".jinja": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".py": "text/x-python; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class StoredFile:
    """A published file: `name` is relative, with `/` between its parts; `sha256` is in lower-case hexadecimal."""

    name: str
    bytes: int
    sha256: str
    media_type: str


class Chunks(Protocol):
    """Bytes in pieces. Whoever does not read them to their end closes them."""

    def __iter__(self) -> Iterator[bytes]: ...

    def __next__(self) -> bytes: ...

    def close(self) -> None:
        """Let go of what the bytes are read from. Idempotent."""
        ...


@dataclass(frozen=True)
class FilePart:
    """The bytes of an open file on this machine from `start` up to, not including, `stop`."""

    descriptor: int
    start: int
    stop: int


@runtime_checkable
class LocalChunks(Chunks, Protocol):
    """Bytes that lie in a file on this machine, which the kernel can send."""

    @property
    def part(self) -> FilePart:
        """Where they lie; valid until `close`."""
        ...


class Storage(Protocol):
    """Published files. Those of an attempt become visible together or not at all, and never change afterwards."""

    def publish(self, job_id: str, attempt: int, directory: Path) -> tuple[StoredFile, ...]:
        """Take over all files of a local directory, which is gone afterwards, and return them sorted by name.

        Idempotent: an attempt that has been published returns what it published then, and an interrupted call is
        completed by the next one.

        Raises:
            InvalidNameError: a file's name is not plain, or is not a regular file's. Nothing was published.
            FileNotFoundError: there is no such directory, and the attempt has published nothing before.
            OSError: the storage cannot be used now. The directory is still there.
        """
        ...

    def exists(self, job_id: str, attempt: int, name: str) -> bool:
        """Return whether the attempt has published a file of this name that has not been discarded."""
        ...

    def open(self, job_id: str, attempt: int, name: str, start: int, stop: int) -> Chunks:
        """Return the bytes of a file from `start` up to, not including, `stop`, in chunks.

        Reading goes on to its end even if the file is discarded meanwhile.

        Raises:
            ArtifactNotFound: there is no such file.
        """
        ...

    def link(self, job_id: str, attempt: int, name: str, seconds: float) -> str | None:
        """Return a URL at which the store itself serves the file for this long; None where it serves none."""
        ...

    def attempts(self) -> list[tuple[str, int]]:
        """Return job id and attempt of everything stored, including what was only begun or not wholly discarded."""
        ...

    def discard(self, job_id: str, attempt: int) -> None:
        """Delete everything that the attempt has published or begun to publish. Idempotent."""
        ...

    def set_aside(self, job_id: str, attempt: int) -> None:
        """Keep the attempt's files out of sight, where only an operator finds them. Idempotent.

        The attempt is no longer among `attempts()`, and its files can no longer be opened here.
        """
        ...

    def owner(self, identity: str) -> str:
        """Return the identity of the database whose files these are; mark storage that has none yet with `identity`."""
        ...


class InvalidNameError(ValueError):
    """A name that no published file may have."""


def check_name(name: str) -> str:
    """Return the name if it is plain and relative: no `..`, no hidden part, nothing that leads out of a directory.

    Raises:
        InvalidNameError: it is not.
    """
    parts = name.split("/")
    if len(name) > NAME_LIMIT or not all(NAME_PART.fullmatch(part) for part in parts):
        raise InvalidNameError(f"{name[:NAME_LIMIT]!r} is not a plain relative file name")
    return name


def list_names(directory: Path, but: str | None = None) -> list[str]:
    """Return the sorted names of the regular files below `directory`, without that of the file `but`.

    Raises:
        InvalidNameError: a name is not plain, or anything else lies there, such as a link.
    """
    names = []
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidNameError(f"{name!r} is neither a regular file nor a directory")
        if path.is_file() and name != but:
            names.append(check_name(name))
    return sorted(names)


def media_type(name: str) -> str:
    """Return the media type of a file by the ending of its name."""
    return MEDIA_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
