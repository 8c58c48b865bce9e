"""Hidden states over the calibration tokens: of one model at whichever block they are asked for, or of the original and
of a model made of it side by side, from block to block.

Promise: they wait in files. Of a model's stream what `disk` allows is not computed twice, and one at a time is in
memory; of two side by side only the batch at work is.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.compression.models.streamed import StreamedModel
from workers.compression.steps.two_streams import BlockwiseModel, StoredStates, embedded
from workers.compression.steps.variants import run_in_batches


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


class PairedStreams:
    """What enters the current block, in the original and in the model made of it, in batches."""

    def __init__(self, original: BlockwiseModel, model: BlockwiseModel, ids: Tensor, scratch: Path) -> None:
        """`ids` are token ids [sequences, length]; `scratch` is an empty directory."""
        self.original, self.model = original, model
        self.before = StoredStates(scratch / "original", embedded(original, ids))
        self.after = StoredStates(scratch / "made", embedded(model, ids))

    def advance_original(self, index: int, following: int) -> None:
        """From what enters the one block to what enters the other."""
        for each in range(index, following):
            with self.original.block(each) as block:
                self.before.pass_through(self.original, block, each)

    def advance_model(self, block: nn.Module, index: int) -> None:
        self.after.pass_through(self.model, block, index)

    def error(self) -> float:
        """How far the model's states are from the original's, relative to them."""
        lost = [(ours.float() - whole.float()).norm() for ours, whole in zip(self.after, self.before, strict=True)]
        whole = [hidden.float().norm() for hidden in self.before]
        return float(torch.stack(lost).norm() / torch.stack(whole).norm())
