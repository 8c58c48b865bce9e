"""Record the input and output of one module while a batch of hidden states passes through its block."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from workers.compression.models.protocols import RunnableModel


class _Seen(Exception):
    """Raised to end a block's forward pass once the module has been reached."""


@dataclass(frozen=True)
class Passage:
    """The input `entered` [..., in] and the output `written` [..., out] of a module."""

    entered: Tensor
    written: Tensor


def passage(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor, name: str) -> tuple[Passage, Tensor]:
    """Run a block on `hidden` [n, T, H]; return the passage of the module `name` inside it, and the block's output."""
    with _watched(block, name, stop=False) as seen:
        output = model.run(block, index, hidden)
    return seen[0], output


def passage_up_to(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor, name: str) -> Passage:
    """Run a block on `hidden` [n, T, H] up to the module `name` inside it, and return that module's passage."""
    with _watched(block, name, stop=True) as seen:
        model.run(block, index, hidden)
    return seen[0]


@contextmanager
def _watched(block: nn.Module, name: str, *, stop: bool) -> Iterator[list[Passage]]:
    """Give a list that collects the passages of the module `name` while the context lasts.

    With `stop`, the block's forward pass ends at the module.
    """
    seen: list[Passage] = []

    def see(_: nn.Module, entered: tuple[Any, ...], written: Tensor) -> None:
        seen.append(Passage(entered[0], written))
        if stop:
            raise _Seen

    with block.get_submodule(name).register_forward_hook(see), suppress(_Seen):
        yield seen
