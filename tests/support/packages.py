"""Packages for tests, written in one line."""

from collections.abc import Iterable
from pathlib import Path

from workers.compression.formats.safetensors import Safetensors
from workers.compression.formats.writer import Written
from workers.compression.overlay import Overlay, Part


def write_package(source: Path, parts: Iterable[Part], destination: Path) -> Written:
    """The main checkpoint of the model in `source` with `parts` laid over it."""
    return Safetensors().write(Overlay.open(source, parts), destination)
