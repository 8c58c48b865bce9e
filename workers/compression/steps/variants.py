"""Run a model together with all its variants that lack one block.

    variants = Variants(model, ids, memory=2**31, disk=2**32)
    for some, leaving in variants.run(blocks, candidates):   # token ids [n, T]; hidden states behind the last block
        leaving[WHOLE], leaving[7]                           # each [n, T, H]: of all blocks, and of all but block 7

A variant starts with the input of the block that it lacks, so all of them together cost half as much as running each
from the start. A loaded block serves all variants that have reached it, so weights are read once per pass. If the
hidden states of all variants would exceed `memory` bytes, a pass takes fewer sequences and there are more passes.

Hidden states on the way are kept in at most `disk` bytes of files. After a block has changed or was removed, the next
run resumes before it. Promise: resumed or not, the hidden states are the same.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from workers.compression.models.protocols import BlockwiseModel, RunnableModel

WHOLE = -1
"""The key of the model without a block left out."""

TOKENS = 2048
"""Tokens that pass through a block at a time."""

Streams = dict[int, Tensor]
"""Hidden states [n, T, H] by the block that the variant lacks, or WHOLE."""

Bridge = Callable[[int, Tensor, Tensor], Tensor]
"""A function (index, entering, wanted) → output, all states [n, T, H]. The block `index` stands before one that is left
out; what the function returns replaces its output, as if it had been refitted. `entering` is its input, `wanted` the
output of the block left out."""


class ShrinkingModel(BlockwiseModel, Protocol):
    """A model that has lost some of its blocks; `models.EditedModel` is one. Blocks have their original index."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The remaining blocks, in order."""

    def edition(self, index: int) -> int:
        """Return a number that rises whenever the block changes."""


def run_in_batches(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
    """Return the block's output [n, T, H] for its input [n, T, H], computed for about `TOKENS` tokens at a time."""
    sequences = max(1, TOKENS // hidden.shape[1])
    return torch.cat([model.run(block, index, some) for some in torch.split(hidden, sequences)])


class Variants:
    """The runs of a model and its variants over token ids [N, T], and the hidden states cached from the last run."""

    def __init__(self, model: ShrinkingModel, ids: Tensor, *, memory: int = 2**31, disk: int = 2**32) -> None:
        self.model = model
        self.ids = ids
        self._memory = memory
        self._disk = disk
        self._scratch = tempfile.TemporaryDirectory(prefix="variants-")
        self._prefixes: list[_Prefixes] = []
        self._sequences = 0

    @torch.no_grad()
    def run(
        self, blocks: Sequence[int], candidates: Collection[int], unchanged: int = 0, bridge: Bridge | None = None
    ) -> Iterator[tuple[Tensor, Streams]]:
        """Yield some of the token ids [n, T] at a time, with the output [n, T, H] of every variant's last block.

        Args:
            blocks: the blocks of the model, in order.
            candidates: the blocks to leave out, one in each variant.
            unchanged: blocks below this index are as they were in the last run, which is then not repeated for them.
            bridge: gives another output to the block before the one that is left out; `unchanged` must then be 0.
        """
        self._divide(len(candidates))
        groups = torch.split(self.ids, self._sequences)
        for some, prefixes in zip(groups, self._prefixes, strict=True):
            yield some, self._run(some, prefixes, blocks, candidates, unchanged, bridge)

    def _divide(self, candidates: int) -> None:
        """Decide, at the first call, how many sequences a pass takes."""
        if self._prefixes:
            return
        stream = self.ids.shape[1] * self.model.inventory.hidden_size * torch.float32.itemsize
        self._sequences = max(1, self._memory // (stream * (candidates + 2)))
        groups = -(-len(self.ids) // self._sequences)
        for number in range(groups):
            directory = Path(self._scratch.name) / str(number)
            directory.mkdir()
            self._prefixes.append(_Prefixes(directory, self._disk // groups))

    def _run(
        self,
        ids: Tensor,
        prefixes: "_Prefixes",
        blocks: Sequence[int],
        candidates: Collection[int],
        unchanged: int,
        bridge: Bridge | None,
    ) -> Streams:
        """Return the output of every variant's last block for token ids [n, T]."""
        start, streams = prefixes.resume(unchanged, candidates) or (0, {WHOLE: self.model.hidden(ids)})
        remaining = [index for index in blocks if index >= start]
        prefixes.expect(streams[WHOLE].nbytes, remaining, candidates)
        previous: tuple[int, Tensor] | None = None
        for index in remaining:
            prefixes.keep(index, streams)
            entering = streams[WHOLE]
            with self.model.block(index) as block:
                streams = {key: run_in_batches(self.model, block, index, each) for key, each in streams.items()}
            if index in candidates:
                streams[index] = bridge(*previous, streams[WHOLE]) if bridge and previous else entering
            previous = index, entering
        return streams


class _Prefixes:
    """A cache on disk of the hidden states that entered some of the blocks, in at most `limit` bytes."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._contents: dict[int, set[int]] = {}
        self._wanted: set[int] = set()

    def resume(self, unchanged: int, candidates: Collection[int]) -> tuple[int, Streams] | None:
        """Return the last block whose cached input is valid and complete, with that input; None if there is none.

        Files of later blocks are deleted.
        """
        for index in sorted(self._contents, reverse=True):
            needed = {WHOLE, *(each for each in candidates if each < index)}
            if index <= unchanged and needed <= self._contents[index]:
                stored: Streams = torch.load(self._directory / str(index))
                return index, {key: stored[key] for key in stored if key in needed}
            (self._directory / str(index)).unlink()
            del self._contents[index]
        return None

    def expect(self, size: int, blocks: Sequence[int], candidates: Collection[int]) -> None:
        """Choose, evenly spaced, as many of `blocks` to cache as fit, for variants of `size` bytes each."""
        total = sum(1 + sum(each < index for each in candidates) for index in blocks) * size
        free = self._limit - sum(file.stat().st_size for file in self._directory.iterdir())
        stride = max(1, -(-total // free)) if free > 0 else len(blocks) + 1
        self._wanted = set(blocks[stride - 1 :: stride])

    def keep(self, index: int, streams: Streams) -> None:
        """Cache the input of the block `index`, if it is one of those chosen."""
        if index in self._wanted:
            torch.save(streams, self._directory / str(index))
            self._contents[index] = set(streams)
