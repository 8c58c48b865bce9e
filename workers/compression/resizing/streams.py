"""The hidden states of one model over the calibration tokens, at whichever block they are asked for.

Promise: what `disk` allows is kept in files and not computed twice; only one stream is in memory at a time.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from workers.compression.models.streamed import StreamedModel
from workers.compression.resizing.variants import run_in_batches


class Stream:
    """A model and the token ids [N, T] that flow through it, kept at as many blocks as `disk` bytes have room for."""

    def __init__(self, model: StreamedModel, ids: Tensor, *, disk: int = 2**32) -> None:
        self._model = model
        self._ids = ids
        self._scratch = tempfile.TemporaryDirectory(prefix="stream-")
        size = ids.numel() * model.inventory.hidden_size * model.dtype.itemsize
        self._stride = max(1, -(-size * model.inventory.blocks // disk))

    @torch.no_grad()
    def entering(self, index: int) -> Tensor:
        """What enters the block, [N, T, H]; for the number of blocks, what leaves the last one."""
        start = max((each for each in self._kept() if each <= index), default=None)
        hidden = self._model.hidden(self._ids) if start is None else torch.load(self._file(start))
        for each in range(start or 0, index):
            with self._model.block(each) as block:
                hidden = run_in_batches(self._model, block, each, hidden)
            if (each + 1) % self._stride == 0:
                torch.save(hidden, self._file(each + 1))
        return hidden

    def forget(self, index: int) -> None:
        """To be called when the block has changed: what has passed through it holds no longer."""
        for each in self._kept():
            if each > index:
                self._file(each).unlink()

    def _kept(self) -> list[int]:
        return [int(file.name) for file in Path(self._scratch.name).iterdir()]

    def _file(self, index: int) -> Path:
        return Path(self._scratch.name) / str(index)
