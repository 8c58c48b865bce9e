"""Write the weights that rounded ones stand for as an ordinary checkpoint, so that they can be measured.

    write_decoded(overlay, destination)

No client gets such a checkpoint: it is larger than the file that it stands for.
"""

from pathlib import Path

from workers.compression.companions import copy_companions
from workers.compression.formats.files import complete, write_json, write_weights
from workers.compression.overlay import Overlay


def write_decoded(overlay: Overlay, destination: Path) -> None:
    """Write every tensor of a model without factored layers to the directory `destination`, rounded ones in float32.

    The directory appears complete or not at all. Raises FileExistsError if it exists.
    """
    with complete(destination) as directory:
        write_weights(overlay.tensors, directory)
        write_json(directory / "config.json", overlay.config())
        copy_companions(overlay.original.directory, directory)
