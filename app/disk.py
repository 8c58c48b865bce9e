"""Whether there is room on a disk for what is about to be written."""

import errno
import shutil
from pathlib import Path

from modelpress.contract.recipe import Recipe

BYTES_A_NUMBER = 2
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The disk, or the user's share of it, is full."""
BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS})
"""The disk or its file system does not work."""


def is_disk_failure(error: OSError) -> bool:
    """Return whether an error says that the disk is full or does not work, and not that the program is wrong."""
    return error.errno in FULL | BROKEN


def lack_of_room(directory: Path, needed_bytes: int, reserved_bytes: int) -> str | None:
    """Return what is lacking where so much does not fit beside the reserve; None where it does.

    The directory need not exist yet.
    """
    there = next(place for place in (directory, *directory.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free - reserved_bytes >= needed_bytes:
        return None
    return (
        f"the worker's disk has {free / 1e9:.1f} GB free, of which {reserved_bytes / 1e9:.1f} GB are reserved, and "
        f"{needed_bytes / 1e9:.1f} GB are needed"
    )


def require_room(directory: Path, needed_bytes: int, reserved_bytes: int) -> None:
    """Raise the OSError of a full disk where so much does not fit beside the reserve."""
    lack = lack_of_room(directory, needed_bytes, reserved_bytes)
    if lack is not None:
        raise OSError(errno.ENOSPC, lack)


def least_written(recipe: Recipe, parameters: int) -> int:
    """Return the bytes that a job writes at least: its checkpoints, one for each ratio."""
    return sum(int(BYTES_A_NUMBER * parameters / ratio) for ratio in recipe.ratios)
