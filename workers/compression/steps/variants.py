"""Running a model and, along with it, every variant that lacks one block.

    variants = Variants(model, ids, memory=2**31, disk=2**32)
    for some, leaving in variants.run(blocks, candidates):   # token ids [n, T]; the streams that leave the last block
        leaving[WHOLE], leaving[7]                           # each [n, T, H]: of all blocks, and of all but block 7

A variant begins with what enters the block that it lacks, so all of them together cost half of running each from the
start, and a block that has been loaded serves all whose suffix it belongs to: weights are read once a pass. Where the
streams of all variants would exceed `memory` bytes, a pass takes fewer sequences and there are more passes.

The streams on the way are kept in at most `disk` bytes of files: when a block changes or goes, the next run resumes
before it. Promise: resumed or not, the streams are the same.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from workers.compression.spec.inventory import Inventory

WHOLE = -1
"""The key of the stream that lacks no block."""

TOKENS = 2048
"""Tokens that pass through a block at a time."""

Streams = dict[int, Tensor]

Bridge = Callable[[int, Tensor, Tensor], Tensor]
"""From the block before one that is left out, what enters the former and what leaves the latter, both [n, T, H]: what
is to leave the former instead."""


class RunnableModel(Protocol):
    """What running a block needs of a model; `models.StreamedModel` is one."""

    @property
    def inventory(self) -> Inventory:
        """That of the original."""

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """The block's output for its input."""


class ShrinkingModel(RunnableModel, Protocol):
    """What this module needs of a model; `models.EditedModel` is one. Blocks go by their index in the original."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The blocks that remain, in order."""

    def edition(self, index: int) -> int:
        """A number that rises whenever the block changes."""

    def hidden(self, ids: Tensor) -> Tensor:
        """Token ids [batch, length] to the first block's input [batch, length, width]."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """A block with its weights, for as long as the context lasts."""

    def head(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """The function from the last block's output to logits."""


def run_in_batches(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
    """The block's output [n, T, H] for its input [n, T, H], about `TOKENS` at a time."""
    sequences = max(1, TOKENS // hidden.shape[1])
    return torch.cat([model.run(block, index, some) for some in torch.split(hidden, sequences)])


class Variants:
    """A model, the calibration tokens [N, T] that are run through it, and the streams kept from the last run."""

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
        """Yields token ids [n, T], some of the calibration's at a time, and the streams [n, T, H] that leave the last.

        `blocks` are those the model now consists of, `candidates` those to be left out. Below the index `unchanged`
        the blocks are those of the run before, which is then not repeated. With a `bridge` the block before the one
        that is left out has another output; then `unchanged` is 0.
        """
        self._divide(len(candidates))
        groups = torch.split(self.ids, self._sequences)
        for some, prefixes in zip(groups, self._prefixes, strict=True):
            yield some, self._run(some, prefixes, blocks, candidates, unchanged, bridge)

    def _divide(self, candidates: int) -> None:
        """Settles, once, how many sequences a pass takes."""
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
    """Files of the streams that entered some of the blocks, at most `limit` bytes of them."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._contents: dict[int, set[int]] = {}
        self._wanted: set[int] = set()

    def resume(self, unchanged: int, candidates: Collection[int]) -> tuple[int, Streams] | None:
        """The last block whose streams still hold and suffice, and these; the files after it are removed."""
        for index in sorted(self._contents, reverse=True):
            needed = {WHOLE, *(each for each in candidates if each < index)}
            if index <= unchanged and needed <= self._contents[index]:
                stored: Streams = torch.load(self._directory / str(index))
                return index, {key: stored[key] for key in stored if key in needed}
            (self._directory / str(index)).unlink()
            del self._contents[index]
        return None

    def expect(self, size: int, blocks: Sequence[int], candidates: Collection[int]) -> None:
        """Chooses, evenly spread, as many of the coming blocks as fit, for streams of `size` bytes each."""
        total = sum(1 + sum(each < index for each in candidates) for index in blocks) * size
        free = self._limit - sum(file.stat().st_size for file in self._directory.iterdir())
        stride = max(1, -(-total // free)) if free > 0 else len(blocks) + 1
        self._wanted = set(blocks[stride - 1 :: stride])

    def keep(self, index: int, streams: Streams) -> None:
        if index in self._wanted:
            torch.save(streams, self._directory / str(index))
            self._contents[index] = set(streams)
