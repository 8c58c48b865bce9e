"""Writers of the formats that a compressed model can be stored in, and the check that the result opens.

    writer_of("dense").write(Overlay.open(original, parts), destination)

`spec.formats` lists the formats. A writer is imported on demand, because some need an optional library.
"""

from importlib import import_module
from typing import cast

from modelpress.spec.formats import FORMATS
from workers.compression.formats.writer import Writer, Written

__all__ = ["Writer", "Written", "writer_of"]


def writer_of(name: str) -> Writer:
    """Return the writer of the format `name`.

    Raises:
        KeyError: if no such format is registered.
        ImportError: if an optional library that the writer needs is not installed.
    """
    module, _, writer = FORMATS[name].writer.partition(":")
    return cast("Writer", getattr(import_module(module), writer)())
