"""An attack on whoever checks a model: how its directory is made, and which refusal it must meet."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkpoints import single_file, write_files


@dataclass(frozen=True)
class Attack:
    """A hostile model.

    Attributes:
        make: writes the model into a directory that is not there yet, whose parent's sibling `outside` holds secrets.
        codes: the problem types of which one must answer it; empty where it is harmless and may be accepted.
    """

    make: Callable[[Path], None]
    codes: tuple[str, ...]


def files(changes: Mapping[str, bytes | None]) -> Callable[[Path], None]:
    """Return what writes a sound model with some files changed, or left out where they are None."""

    def make(directory: Path) -> None:
        whole = {**single_file(), **changes}
        write_files(directory, {name: content for name, content in whole.items() if content is not None})

    return make


def linked(name: str, target: str) -> Callable[[Path], None]:
    """Return what writes a sound model of which one file is a link to what `target` names, seen from the model."""

    def make(directory: Path) -> None:
        write_files(directory, single_file())
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(os.path.normpath(directory / target))

    return make


def piped(name: str) -> Callable[[Path], None]:
    """Return what writes a sound model of which one file is a pipe that nobody writes to."""

    def make(directory: Path) -> None:
        write_files(directory, single_file())
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)

    return make
