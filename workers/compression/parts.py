"""What every road to a smaller model yields, one after another: parts that are finished and can be kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class CompressedPart:
    """A finished piece of the compressed model.

    The model's tensors are the original's, less the `.weight` of every site in `structures`, plus `tensors`. `errors`
    is the relative norm of the difference between each site's output and its target's. The blocks in `removed` are left
    out from here on. Blocks are always numbered as in the original; of a tensor in several parts the last one counts. A
    tied head whose structure is dense keeps the original's table for itself. `scores` are those by which the removed
    blocks were chosen, by the number of the block.
    """

    index: int
    name: str
    structures: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    errors: Mapping[str, float]
    removed: tuple[int, ...] = ()
    scores: Mapping[int, float] = field(default_factory=dict)


Finished = Callable[[int], CompressedPart]
"""Gives the part of that number, which was yielded before."""
