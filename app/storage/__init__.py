"""Where finished files lie. The API and the workers know them by job, attempt and name, never by path."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

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


class InvalidNameError(ValueError):
    """A name that no published file may have."""


def check_name(name: str) -> str:
    """Names are plain and relative, so that none leads out of its directory on any system: no `..`, no hidden part."""
    parts = name.split("/")
    if len(name) > NAME_LIMIT or not all(NAME_PART.fullmatch(part) for part in parts):
        raise InvalidNameError(f"{name[:NAME_LIMIT]!r} is not a plain relative file name")
    return name


def media_type(name: str) -> str:
    return MEDIA_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
