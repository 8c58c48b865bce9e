"""Finished parts of a compressed model, which every step produces one after another, and their store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class CompressedPart:
    """A finished piece of the compressed model.

    The compressed model has the original's tensors, without the `.weight` of every module in `structures`, plus
    `tensors`. A tensor in `encodings` is rounded: `tensors` holds what `Encoded.tensors` stores in its place. The
    blocks in `removed` are left out from this part on. Blocks are always numbered as in the original, and of a
    tensor in several parts the last one counts. A tied head whose structure is dense keeps the original's table for
    itself.

    Attributes:
        name: a readable name, such as that of the block.
        structures: full module name → JSON form of the structure that replaces the module.
        tensors: full tensor name → tensor.
        errors: relative norm of the difference between a module's output and its target, by module name.
        removed: the removed blocks.
        scores: scores by which the removed blocks were chosen, by block number.
        encodings: full tensor name → name of the code in which the tensor is stored.
        experts: block → the numbers of the experts that stay in its mixture, as the original counts them, ascending.
        unreached: the experts of the block that no token of the calibration text was sent to.
    """

    name: str
    structures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    removed: tuple[int, ...] = ()
    scores: Mapping[int, float] = field(default_factory=dict)
    encodings: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    unreached: tuple[int, ...] = ()


class PartStore(Protocol):
    """Finished parts, in order. A list is one; a store that writes them into files keeps them out of memory."""

    def __len__(self) -> int:
        """Return the number of finished parts."""

    def __getitem__(self, index: int, /) -> CompressedPart:
        """Return the finished part at `index`."""

    def __iter__(self) -> Iterator[CompressedPart]:
        """Yield the finished parts, in order."""

    def append(self, part: CompressedPart, /) -> None:
        """Store the next part."""
