"""What the steps and measurements ask of a model. `models.StreamedModel` and `models.EditedModel` answer all of it.

n sequences of T tokens, H channels of a block, E channels of the embedding, V tokens in the vocabulary.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from modelpress.spec.inventory import Inventory


class RunnableModel(Protocol):
    """A model that runs one of its blocks on hidden states."""

    @property
    def inventory(self) -> Inventory:
        """The model's names and shapes."""

    @property
    def device(self) -> torch.device:
        """Where blocks are held and run."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the blocks' weights."""

    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """Return the block's output [n, T, H] for its input [n, T, H]; gradients pass through.

        `index` decides the position arguments that the block is called with.
        """


class BlockwiseModel(RunnableModel, Protocol):
    """A model that holds one block at a time, and can be run from its embedding to the input of its output head."""

    def hidden(self, ids: Tensor) -> Tensor:
        """Return the first block's input [n, T, H] for token ids [n, T]."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """Hold a block with its weights for as long as the context lasts."""

    def head(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Hold the function from the last block's output [n, T, H] to logits [n, T, V]; gradients pass through."""

    def head_inputs(self, hidden: Tensor) -> Tensor:
        """Return the output head's input [n, T, E] for the last block's output [n, T, H]."""

    @property
    def head_module(self) -> nn.Module:
        """The module of the output head."""

    @property
    def embedding_module(self) -> nn.Module:
        """The module of the embedding."""

    def with_embedding(self, module: nn.Module) -> AbstractContextManager[None]:
        """Use `module` as the embedding while the context lasts."""

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors of the checkpoint by name."""
