"""The interface of a format's writer."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.compression.formats.verification import Verified, verify_all
from workers.compression.overlay import Overlay

Opener = Callable[..., list[Verified]]
"""A function that opens written checkpoints in a fresh process; see `verification.verify_all` for its arguments."""


@dataclass(frozen=True)
class Written:
    """A written checkpoint.

    Attributes:
        directory: where it was written.
        parameters: number of parameters that it represents.
        bytes: size of its weights in bytes.
    """

    directory: Path
    parameters: int
    bytes: int


class Writer(ABC):
    """Writer of one format. Its entry in `spec.formats` describes the format without needing torch."""

    open_fresh: Opener = staticmethod(verify_all)
    """Opens written checkpoints with the format's engine. Formats with the same opener share a process."""

    @abstractmethod
    def write(self, overlay: Overlay, destination: Path) -> Written:
        """Write the model to the directory `destination`, which appears complete or not at all.

        Raises:
            FileExistsError: if `destination` exists.
            MalformedModel: if the original has changed since it was compressed.
            ValueError: if some blocks are narrower than others, or the format does not fit the model.
        """

    def overhead(self, overlay: Overlay) -> int:
        """Return how many bytes the file of a model takes besides its weights, where these are worth counting."""
        return 0
