"""Which experts remain in the mixtures of a model, and what their tensors are called then.

Experts are numbered as in the original. `written` and `original` translate between names with these numbers and names
in which the remaining experts are numbered without gaps. Torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from modelpress.spec.architectures.architecture import Architecture
from modelpress.spec.dimensions import block_of


@dataclass(frozen=True)
class KeptExperts:
    """The experts that remain: `by_block` has the blocks that lost some, with the numbers of those that stay."""

    architecture: Architecture
    by_block: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def keeping(self, kept: Mapping[int, tuple[int, ...]]) -> "KeptExperts":
        """Return what remains once the blocks of `kept` have only these experts."""
        return replace(self, by_block={**self.by_block, **kept})

    def rows(self, name: str) -> tuple[int, ...] | None:
        """Return the rows that stay of a tensor that holds all experts; None for any other, which stays whole."""
        block, inside = self._place(name)
        experts = self.architecture.experts
        return self.by_block.get(block) if experts is not None and experts.holds_all(inside) else None

    def lack(self, name: str) -> bool:
        """Return whether a tensor belongs to an expert that is gone."""
        block, inside = self._place(name)
        return block in self.by_block and self._number(inside) not in (None, *self.by_block[block])

    def written(self, name: str) -> str:
        """Return the name of a tensor of an expert by the expert's place among those that remain."""
        block, inside = self._place(name)
        number = self._number(inside)
        if number is None or block not in self.by_block:
            return name
        return self._renamed(name, inside, self.by_block[block].index(number))

    def original(self, name: str) -> str:
        """Return the name that `written` has given the name `name`."""
        block, inside = self._place(name)
        number = self._number(inside)
        if number is None or block not in self.by_block:
            return name
        return self._renamed(name, inside, self.by_block[block][number])

    def _place(self, name: str) -> tuple[int, str]:
        """Return the block of a tensor and its name inside; (-1, '') outside the blocks."""
        block = block_of(name, self.architecture.blocks)
        return (-1, "") if block is None else (block, name.removeprefix(f"{self.architecture.blocks}.{block}."))

    def _number(self, inside: str) -> int | None:
        experts = self.architecture.experts
        return None if experts is None else experts.number_of(inside)

    def _renamed(self, name: str, inside: str, number: int) -> str:
        listed = "" if self.architecture.experts is None else f"{self.architecture.experts.listed}."
        return f"{name.removesuffix(inside)}{listed}{number}.{inside.removeprefix(listed).partition('.')[2]}"
