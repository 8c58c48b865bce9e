"""What every writer of a format does."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.compression.formats.verification import Verified, verify_all
from workers.compression.overlay import Overlay

Opener = Callable[..., list[Verified]]
"""Opens written checkpoints in a fresh process, as `verification.verify_all` does."""


@dataclass(frozen=True)
class Written:
    """A written checkpoint. `parameters` counts the numbers that it stands for, `bytes` those of its weights."""

    directory: Path
    parameters: int
    bytes: int


class Writer(ABC):
    """Writes one format. `spec.formats` has an entry for each, with what can be said of it without torch."""

    open_fresh: Opener = staticmethod(verify_all)
    """Opens what was written with the engine that the format is for. Formats that share an opener share its process."""

    @abstractmethod
    def write(self, overlay: Overlay, destination: Path) -> Written:
        """Write the model into a directory that appears complete or not at all.

        Raises FileExistsError where `destination` is there already, MalformedModel where the original is not what it
        was, ValueError where some blocks are narrower than others, and whatever the format's entry refuses.
        """

    def restore(self, written: Path, destination: Path) -> None:
        """Write the numbers that the checkpoint `written` stands for as an ordinary one that can be measured.

        Only formats that round have one: of all others the main checkpoint is measured. Raises FileExistsError.
        """
        raise NotImplementedError(f"{type(self).__name__} does not round")
