"""The hidden states of the original and of the compressed model side by side, and what they tell of a block's sites.

Promise: the states wait in files; only the batch at work is in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workers.compression.math.fitting import Moments
from workers.compression.spec.inventory import Inventory

TOKENS = 1024
"""Tokens that pass through a block at a time, at least one sequence."""

EMBEDDED = 8
"""Batches that are embedded at a time: the embedding is read anew each time."""


class BlockwiseModel(Protocol):
    """What this module needs of a model; `models.StreamedModel` is one."""

    inventory: Inventory

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids [batch, length] to the first block's input [batch, length, width]."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """A block with its weights, for as long as the context lasts."""

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """The block's output for its input, with the position arguments of its index."""

    def head_inputs(self, hidden: Tensor) -> Tensor:
        """The last block's output [batch, length, width] to what enters the output head."""

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of the checkpoint by name."""

    def with_embedding(self, module: nn.Module) -> AbstractContextManager[None]:
        """Puts a module in the place of the embedding, for as long as the context lasts."""

    @property
    def embedding_module(self) -> nn.Module:
        """The embedding itself."""


def embedded(model: BlockwiseModel, ids: Tensor) -> Iterator[Tensor]:
    """Token ids [sequences, length] to what enters the first block, batch by batch."""
    batch = max(1, TOKENS // ids.shape[1])
    for some in torch.split(ids, EMBEDDED * batch):
        # Copies, since a part of a tensor is written to a file with all the rest.
        yield from (hidden.clone() for hidden in torch.split(model.hidden(some), batch))


class StoredStates:
    """Hidden states in batches, each in a file of its own: only the one at work is in memory."""

    def __init__(self, directory: Path, batches: Iterable[Tensor]) -> None:
        directory.mkdir()
        self._files: list[Path] = []
        for hidden in batches:
            self._files.append(directory / str(len(self._files)))
            torch.save(hidden, self._files[-1])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, batch: int) -> Tensor:
        hidden: Tensor = torch.load(self._files[batch])
        return hidden

    def __iter__(self) -> Iterator[Tensor]:
        return (self[batch] for batch in range(len(self)))

    def advance(self, batch: int, hidden: Tensor) -> None:
        torch.save(hidden, self._files[batch])

    def pass_through(self, model: BlockwiseModel, block: nn.Module, index: int) -> None:
        """From what enters a block of the model to what leaves it."""
        for batch, hidden in enumerate(self):
            self.advance(batch, model.run(block, index, hidden))


class StoredMoments:
    """The moments of a block's sites, in files: in memory are those alone that were taken out."""

    def __init__(self, directory: Path, moments: dict[str, Moments]) -> None:
        """`moments` by the site's name, some of them perhaps shared; the dictionary is emptied."""
        directory.mkdir(exist_ok=True)
        self._files: dict[str, Path] = {}
        self._orders: dict[str, Tensor] = {}
        files: dict[int, Path] = {}
        for name, each in moments.items():
            if id(each) not in files:
                files[id(each)] = directory / name
                torch.save(vars(each), directory / name)
            self._files[name] = files[id(each)]
        moments.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def take(self, name: str) -> Moments:
        moments = Moments(**torch.load(self._files[name]))
        if name in self._orders:
            moments.reorder(self._orders[name])
        return moments

    def reorder(self, name: str, order: Tensor) -> None:
        """For a site whose inputs have been put into `order`, which lists their former places."""
        self._orders[name] = order


class TwoStreams:
    """The hidden states of both models before the current block.

    There is no `original` where nothing is compensated for. As long as the streams are `alike`, before the first block
    that was compressed, sites are observed in one of them.
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
        if self.original is not None:
            self.original.pass_through(self.model, block, index)

    def advance_compressed(self, block: nn.Module, index: int, *, changed: bool) -> None:
        self.compressed.pass_through(self.model, block, index)
        self.alike = self.alike and not changed

    def observe(self, block: nn.Module, index: int, names: Sequence[str]) -> StoredMoments:
        """The moments of the named sites while the block is still whole; those with the same input share theirs.

        The original stream moves on to the block's output.
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
                    moments[name] = Moments.empty(inputs.shape[-1]) if leader == name else moments[leader]
                if leader == name:
                    moments[name].add(inputs, None if before is None else before[name])
        return StoredMoments(self.scratch / "moments", moments)

    def observe_head(self) -> Moments:
        """The moments of what enters the output head, after the last block."""
        moments = Moments.empty(self.model.inventory.embedding.in_features)
        for batch in range(len(self.compressed)):
            before = None if self.original is None else self.model.head_inputs(self.original[batch])
            moments.add(self.model.head_inputs(self.compressed[batch]), before)
        return moments

    def _inputs(
        self, block: nn.Module, index: int, hidden: Tensor, names: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The block's output, and what entered each of the named sites on the way."""
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
