"""The written forms of a compressed model, and opening them as a client would.

    writer_of("int4").write(Overlay.open(original, parts), destination)

`spec.formats` lists the formats; a writer is imported when it is asked for, since some need an optional library.
"""

from importlib import import_module
from typing import cast

from workers.compression.formats.writer import Writer, Written
from workers.compression.spec.formats import FORMATS

__all__ = ["Writer", "Written", "writer_of"]


def writer_of(name: str) -> Writer:
    """Return the writer of a registered format. Raises ImportError where a library that it needs is missing."""
    module, _, writer = FORMATS[name].writer.partition(":")
    return cast("Writer", getattr(import_module(module), writer)())
