"""Hidden states over the calibration tokens, kept on shelves.

`Stream` gives those of one model at any block. `PairedStreams` has those of the original and of a model made from it,
and advances them block by block.

Promise: a `Stream` computes nothing twice that `disk` has room for, and holds the hidden states of one block in memory.
`PairedStreams` holds one batch.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.compression.models.protocols import BlockwiseModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.shelf import shelf_for
from workers.compression.steps.two_streams import StoredStates, embedded
from workers.compression.steps.variants import run_in_batches


class Stream:
    """The hidden states of a model over token ids [N, T], cached at as many blocks as fit in `disk` bytes."""

    def __init__(self, model: StreamedModel, ids: Tensor, *, disk: int = 2**32) -> None:
        self._model = model
        self._ids = ids
        self._scratch = tempfile.TemporaryDirectory(prefix="stream-")
        self._shelf = shelf_for(model.device, Path(self._scratch.name))
        size = ids.numel() * model.inventory.hidden_size * model.dtype.itemsize
        self._stride = max(1, -(-size * model.inventory.blocks // disk))

    @torch.no_grad()
    def entering(self, index: int) -> Tensor:
        """Return the input [N, T, H] of the block `index`; for the number of blocks, the last block's output."""
        start = max((each for each in self._shelf.numbers() if each <= index), default=None)
        hidden = self._model.hidden(self._ids) if start is None else self._shelf.get(start)
        for each in range(start or 0, index):
            with self._model.block(each) as block:
                hidden = run_in_batches(self._model, block, each, hidden)
            if (each + 1) % self._stride == 0:
                self._shelf.put(each + 1, hidden)
        return hidden

    def forget(self, index: int) -> None:
        """Delete the cached states behind the block `index`. Call this after the block has changed."""
        for each in self._shelf.numbers():
            if each > index:
                self._shelf.remove(each)


class PairedStreams:
    """The input of the current block, in batches: `before` in the original, `after` in the model made from it."""

    def __init__(self, original: BlockwiseModel, model: BlockwiseModel, ids: Tensor, scratch: Path) -> None:
        """Embed the token ids `ids` [sequences, length] in both models, and store them in the empty directory
        `scratch`."""
        self.original, self.model = original, model
        self.before = StoredStates(scratch / "original", embedded(original, ids), original.device)
        self.after = StoredStates(scratch / "made", embedded(model, ids), model.device)

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
        lost, whole = [], []
        for ours, theirs in zip(self.after, self.before, strict=True):
            lost.append((ours.float() - theirs.float()).norm())
            whole.append(theirs.float().norm())
        return float(torch.stack(lost).norm() / torch.stack(whole).norm())
