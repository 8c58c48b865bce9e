"""What every step leaves, one after another: parts that are finished and can be kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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

    name: str
    structures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    removed: tuple[int, ...] = ()
    scores: Mapping[int, float] = field(default_factory=dict)


class PartStore(Protocol):
    """Keeps finished parts, in order. A list is one; a store that writes them into files keeps them out of memory."""

    def __len__(self) -> int:
        """Return how many parts are finished."""

    def __getitem__(self, index: int, /) -> CompressedPart:
        """Return a finished part."""

    def __iter__(self) -> Iterator[CompressedPart]:
        """Yield the finished parts, in order."""

    def append(self, part: CompressedPart, /) -> None:
        """Keep the next part."""
