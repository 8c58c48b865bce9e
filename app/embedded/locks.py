"""File locks of the kernel (flock), which end with the last process that holds them, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.embedded.errors import DataDirectoryInUse


def open_lock(path: Path) -> int:
    """Open a lock file, readable only by its owner and closed in child processes, and return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock without waiting, and return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_pid(descriptor: int, pid: int) -> None:
    """Replace the content of a lock file by a process id."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def read_pid(descriptor: int) -> int | None:
    """Return the process id in a lock file, or None if there is none."""
    written = os.pread(descriptor, 32, 0).strip()
    return int(written) if written.isdigit() else None


@contextmanager
def sole_owner(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process while the context is open; create it if it does not exist.

    Raises:
        DataDirectoryInUse: another process holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = open_lock(data_dir / "owner.lock")
    try:
        if not try_lock(descriptor):
            raise DataDirectoryInUse(
                f"Another Modelpress (process {read_pid(descriptor)}) runs its own database or broker in {data_dir}. "
                "Stop it, or set MODELPRESS_DATA_DIR to another directory."
            )
        write_pid(descriptor, os.getpid())
        yield
    finally:
        os.close(descriptor)
