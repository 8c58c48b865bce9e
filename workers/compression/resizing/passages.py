"""What a batch of hidden states leaves at one module of a block on its way."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.compression.resizing.variants import RunnableModel


class _Seen(Exception):
    """Ends a block's forward where nothing more of it is needed."""


@dataclass(frozen=True)
class Passage:
    """What `entered` the module and what it has `written`, [..., in] and [..., out]."""

    entered: Tensor
    written: Tensor


def passage(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor, name: str) -> tuple[Passage, Tensor]:
    """At the module of that name inside the block; and the block's output for `hidden` [n, T, H]."""
    seen: list[Passage] = []

    def see(_: nn.Module, entered: tuple[Any, ...], written: Tensor) -> None:
        seen.append(Passage(entered[0], written))

    with block.get_submodule(name).register_forward_hook(see):
        output = model.run(block, index, hidden)
    return seen[0], output


@torch.no_grad()
def passage_up_to(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor, name: str) -> Passage:
    """The same without what follows the module."""
    seen: list[Passage] = []

    def stop(_: nn.Module, entered: tuple[Any, ...], written: Tensor) -> None:
        seen.append(Passage(entered[0], written))
        raise _Seen

    with block.get_submodule(name).register_forward_hook(stop), suppress(_Seen):
        model.run(block, index, hidden)
    return seen[0]
