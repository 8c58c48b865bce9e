"""Count the parameters and bytes that a checkpoint stores, from the headers of its files; shared tensors count once.

stored_size(directory)        # of an original or a package
"""

import math
from dataclasses import dataclass
from pathlib import Path

from modelpress.spec.config import original_config, read_config
from modelpress.spec.headers import stored_tensors
from modelpress.spec.inventory import weights


@dataclass(frozen=True)
class Size:
    """Stored parameters and their bytes in the weight files; a shared tensor counts once."""

    parameters: int
    bytes: int


def stored_size(directory: Path) -> Size:
    """Return the size of the checkpoint in `directory`, ordinary or factored."""
    config, _ = original_config(read_config(directory))
    tensors = stored_tensors(directory)
    counted = [tensors[name] for name in weights(config, tensors).values()]
    return Size(sum(math.prod(tensor.shape) for tensor in counted), sum(tensor.bytes for tensor in counted))
