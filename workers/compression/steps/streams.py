"""Hidden states over the calibration tokens, kept in files.

`Stream` gives those of one model at any block. `PairedStreams` has those of the original and of a model made from it,
and advances them block by block.

Promise: a `Stream` computes nothing twice that `disk` has room for, and holds the hidden states of one block in memory.
`PairedStreams` holds one batch.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.compression.models.streamed import StreamedModel
from workers.compression.steps.two_streams import BlockwiseModel, StoredStates, embedded
from workers.compression.steps.variants import run_in_batches


class Stream:
    """The hidden states of a model over token ids [N, T], cached at as many blocks as fit in `disk` bytes of files."""

    def __init__(self, model: StreamedModel, ids: Tensor, *, disk: int = 2**32) -> None:
        self._model = model
        self._ids = ids
        self._scratch = tempfile.TemporaryDirectory(prefix="stream-")
        size = ids.numel() * model.inventory.hidden_size * model.dtype.itemsize
        self._stride = max(1, -(-size * model.inventory.blocks // disk))

    @torch.no_grad()
    def entering(self, index: int) -> Tensor:
        """Return the input [N, T, H] of the block `index`; for the number of blocks, the last block's output."""
        start = max((each for each in self._kept() if each <= index), default=None)
        hidden = self._model.hidden(self._ids) if start is None else torch.load(self._file(start))
        for each in range(start or 0, index):
            with self._model.block(each) as block:
                hidden = run_in_batches(self._model, block, each, hidden)
            if (each + 1) % self._stride == 0:
                torch.save(hidden, self._file(each + 1))
        return hidden

    def forget(self, index: int) -> None:
        """Delete the cached states behind the block `index`. Call this after the block has changed."""
        for each in self._kept():
            if each > index:
                self._file(each).unlink()

    def _kept(self) -> list[int]:
        return [int(file.name) for file in Path(self._scratch.name).iterdir()]

    def _file(self, index: int) -> Path:
        return Path(self._scratch.name) / str(index)


class PairedStreams:
    """The input of the current block, in batches: `before` in the original, `after` in the model made from it."""

    def __init__(self, original: BlockwiseModel, model: BlockwiseModel, ids: Tensor, scratch: Path) -> None:
        """Embed the token ids `ids` [sequences, length] in both models, and store them in the empty directory
        `scratch`."""
        self.original, self.model = original, model
        self.before = StoredStates(scratch / "original", embedded(original, ids))
        self.after = StoredStates(scratch / "made", embedded(model, ids))

    def advance_original(self, index: int, following: int) -> None:
        """Advance the original's states from the input of the block `index` to that of the block `following`."""
        for each in range(index, following):
            with self.original.block(each) as block:
                self.before.pass_through(self.original, block, each)

    def advance_model(self, block: nn.Module, index: int) -> None:
        """Advance the model's states through `block`, whose index is `index`."""
        self.after.pass_through(self.model, block, index)

    def error(self) -> float:
        """Return the norm of the difference of both models' states over the norm of the original's."""
        lost = [(ours.float() - whole.float()).norm() for ours, whole in zip(self.after, self.before, strict=True)]
        whole = [hidden.float().norm() for hidden in self.before]
        return float(torch.stack(lost).norm() / torch.stack(whole).norm())
