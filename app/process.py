"""What Linux lets a process ask for itself. Other systems have none of it, and go without."""

import ctypes
import sys

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36


def hide() -> None:
    """Keep this process's memory and environment, which hold secrets, from other processes of the same user."""
    _ask(PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends."""
    _ask(PR_SET_CHILD_SUBREAPER, 1)


def _ask(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
