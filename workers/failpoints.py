"""Named points in the life of a job at which a test can let its process die. In production nothing happens there."""

from collections.abc import Callable
from enum import StrEnum


class Point(StrEnum):
    """A moment between two steps of a worker."""

    CLAIMED = "claimed"
    FETCHING = "fetching"
    FETCHED = "fetched"
    COMPUTING = "computing"
    COMPUTED = "computed"
    PUBLISHED = "published"
    FINISHING = "finishing"  # the end is written, and not committed
    ENDED = "ended"


def nothing(point: Point) -> None:
    """Do nothing."""


hook: Callable[[Point], None] = nothing
"""Called at each point; a test puts something else in its place."""


def failpoint(point: Point) -> None:
    """Tell that the process has come to a point."""
    hook(point)
