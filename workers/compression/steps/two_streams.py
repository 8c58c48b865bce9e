"""The hidden states of the original and of the compressed model side by side, and the moments of a block's sites.

Promise: the states wait on a shelf, beside a CPU in files; one batch is in memory.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workers.compression.math.fitting import Moments
from workers.compression.models.protocols import BlockwiseModel
from workers.compression.shelf import shelf_for

TOKENS = 1024
"""Tokens that pass through a block at a time, at least one sequence."""

EMBEDDED = 8
"""Batches that are embedded at a time. The embedding is read from the checkpoint once for each such group."""


def embedded(model: BlockwiseModel, ids: Tensor) -> Iterator[Tensor]:
    """Yield the first block's input [n, length, width] for token ids [sequences, length], batch by batch."""
    batch = max(1, TOKENS // ids.shape[1])
    for some in torch.split(ids, EMBEDDED * batch):
        yield from torch.split(model.hidden(some), batch)


class StoredStates:
    """Batches of hidden states [n, T, H]."""

    def __init__(self, directory: Path, batches: Iterable[Tensor], device: torch.device) -> None:
        directory.mkdir()
        self._shelf = shelf_for(device, directory)
        for number, hidden in enumerate(batches):
            self._shelf.put(number, hidden)
        self._count = len(self._shelf.numbers())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, batch: int) -> Tensor:
        """Return a batch, and expect to be asked for the next one."""
        if not 0 <= batch < self._count:
            raise IndexError(f"there are {self._count} batches, and none of the number {batch}")
        hidden = self._shelf.get(batch)
        if batch + 1 < self._count:
            self._shelf.expect(batch + 1)
        return hidden

    def __iter__(self) -> Iterator[Tensor]:
        return (self[batch] for batch in range(len(self)))

    def advance(self, batch: int, hidden: Tensor) -> None:
        """Replace a batch by `hidden` [n, T, H]."""
        self._shelf.put(batch, hidden)

    def pass_through(self, model: BlockwiseModel, block: nn.Module, index: int) -> None:
        """Replace every batch by the block's output for it."""
        for batch, hidden in enumerate(self):
            self.advance(batch, model.run(block, index, hidden))


class StoredMoments:
    """The moments of a block's sites: those of a CPU in files, loaded one at a time, those of a card where they are."""

    def __init__(self, directory: Path, moments: dict[str, Moments]) -> None:
        """Take `moments`, by site name, and empty the dictionary; shared moments are written once."""
        directory.mkdir(exist_ok=True)
        self._leaders: dict[str, str] = {}
        self._places: dict[str, Path | Moments] = {}
        self._orders: dict[str, Tensor] = {}
        leaders: dict[int, str] = {}
        for name, each in moments.items():
            self._leaders[name] = leaders.setdefault(id(each), name)
            if self._leaders[name] != name:
                continue
            self._places[name] = each
            if each.inputs.device.type == "cpu":
                self._places[name] = directory / name
                torch.save(vars(each), directory / name)
        moments.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._leaders

    def leader(self, name: str) -> str:
        """Return the first of the sites that share the moments of the site `name`."""
        return self._leaders[name]

    def take(self, name: str) -> Moments:
        """Return moments of a site that the caller may change."""
        place = self._places[self._leaders[name]]
        moments = dataclasses.replace(place) if isinstance(place, Moments) else Moments(**torch.load(place))
        if name in self._orders:
            moments.reorder(self._orders[name])
        return moments

    def reorder(self, name: str, order: Tensor) -> None:
        """Permute a site's inputs: input i of the moments that `take` returns is the former input `order[i]`."""
        self._orders[name] = order


class TwoStreams:
    """The hidden states of both models before the current block.

    Attributes:
        model: runs the blocks of both.
        original: the original's states; None if no error is compensated for.
        compressed: the compressed model's states.
        scratch: directory for moments.
        alike: whether both states are equal, because nothing before the current block is compressed. Sites are then
            observed in one of them.
    """

    def __init__(
        self,
        model: BlockwiseModel,
        original: StoredStates | None,
        compressed: StoredStates,
        scratch: Path,
        *,
        alike: bool,
    ) -> None:
        self.model, self.scratch = model, scratch
        self.original, self.compressed, self.alike = original, compressed, alike

    def advance_original(self, block: nn.Module, index: int) -> None:
        """Advance the original's states, if there are any, through its `block`."""
        if self.original is not None:
            self.original.pass_through(self.model, block, index)

    def advance_compressed(self, block: nn.Module, index: int, *, changed: bool) -> None:
        """Advance the compressed model's states through its `block`; `changed` says whether the block is compressed."""
        self.compressed.pass_through(self.model, block, index)
        self.alike = self.alike and not changed

    def observe(self, block: nn.Module, index: int, names: Sequence[str]) -> StoredMoments:
        """Return the moments of the named sites of a block that is not compressed yet.

        Sites with the same input share their moments. The original's states move on to the block's output.
        """
        moments: dict[str, Moments] = {}
        for batch in range(len(self.compressed)):
            before: dict[str, Tensor] | None = None
            if self.original is not None:
                output, before = self._inputs(block, index, self.original[batch], names)
                self.original.advance(batch, output)
            if before is not None and self.alike:
                after, before = before, None
            else:
                after = self._inputs(block, index, self.compressed[batch], names)[1]
            leaders: dict[int, str] = {}
            for name, inputs in after.items():
                leader = leaders.setdefault(id(inputs), name)
                if name not in moments:
                    own = leader == name
                    moments[name] = Moments.empty(inputs.shape[-1], inputs.device) if own else moments[leader]
                if leader == name:
                    moments[name].add(inputs, None if before is None else before[name])
        return StoredMoments(self.scratch / "moments", moments)

    def observe_head(self) -> Moments:
        """Return the moments of the output head's input. Call this after the last block."""
        moments = Moments.empty(self.model.inventory.embedding.in_features, self.model.device)
        for batch in range(len(self.compressed)):
            before = None if self.original is None else self.model.head_inputs(self.original[batch])
            moments.add(self.model.head_inputs(self.compressed[batch]), before)
        return moments

    def _inputs(
        self, block: nn.Module, index: int, hidden: Tensor, names: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the block's output for `hidden`, and the input of each named site."""
        entered: dict[str, Tensor] = {}

        def watch(name: str) -> RemovableHandle:
            return block.get_submodule(name).register_forward_pre_hook(
                lambda _, arguments: entered.update({name: arguments[0]})
            )

        handles = [watch(name) for name in names]
        output = self.model.run(block, index, hidden)
        for handle in handles:
            handle.remove()
        return output, entered
