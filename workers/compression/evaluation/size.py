"""What a checkpoint stores, from the headers of its files, one count per distinct tensor.

stored_size(directory)        # of an original or a package
"""

import math
from dataclasses import dataclass
from pathlib import Path

from workers.compression.spec.config import original_config, read_config
from workers.compression.spec.headers import stored_tensors
from workers.compression.spec.inventory import weights


@dataclass(frozen=True)
class Size:
    """Stored numbers and their bytes in the weight files, one count per distinct tensor."""

    parameters: int
    bytes: int


def stored_size(directory: Path) -> Size:
    """The size of an original or a package."""
    config, _ = original_config(read_config(directory))
    tensors = stored_tensors(directory)
    counted = [tensors[name] for name in weights(config, tensors).values()]
    return Size(sum(math.prod(tensor.shape) for tensor in counted), sum(tensor.bytes for tensor in counted))
