"""What is done with files in several places: digests, and making sure that they are on the disk."""

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mark(path: Path, content: str) -> str:
    """Return the text in a small file; the first of any number of callers writes its `content`, for good.

    The file appears with its content or not at all, also after a crash.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        draft.write_text(content)
        sync(draft)
        with suppress(FileExistsError):
            path.hardlink_to(draft)
        draft.unlink()
        sync(path.parent)
    return path.read_text()


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
