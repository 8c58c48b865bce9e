"""What a batch of hidden states leaves at one module of a block on its way."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from workers.compression.steps.variants import RunnableModel


class _Seen(Exception):
    """Ends a block's forward where nothing more of it is needed."""


@dataclass(frozen=True)
class Passage:
    """What `entered` the module and what it has `written`, [..., in] and [..., out]."""

    entered: Tensor
    written: Tensor


def passage(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor, name: str) -> tuple[Passage, Tensor]:
    """At the module of that name inside the block; and the block's output for `hidden` [n, T, H]."""
    with _watched(block, name, stop=False) as seen:
        output = model.run(block, index, hidden)
    return seen[0], output


def passage_up_to(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor, name: str) -> Passage:
    """The same without what follows the module."""
    with _watched(block, name, stop=True) as seen:
        model.run(block, index, hidden)
    return seen[0]


@contextmanager
def _watched(block: nn.Module, name: str, *, stop: bool) -> Iterator[list[Passage]]:
    """What passes the module meanwhile, which ends there if it is to `stop`."""
    seen: list[Passage] = []

    def see(_: nn.Module, entered: tuple[Any, ...], written: Tensor) -> None:
        seen.append(Passage(entered[0], written))
        if stop:
            raise _Seen

    with block.get_submodule(name).register_forward_hook(see), suppress(_Seen):
        yield seen
