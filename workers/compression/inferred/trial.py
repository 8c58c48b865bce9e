"""A block that is run with some outputs of its modules changed, to see what depends on what."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Change = Callable[[Tensor], Tensor]
NO_CHANGES: Mapping[str, Change] = {}


@dataclass(frozen=True)
class Call:
    """One call of a module inside the block: what entered it and what it returned."""

    name: str
    module: nn.Module
    entered: Tensor
    written: Tensor


@dataclass(frozen=True)
class Trial:
    """A block, how it is run, and a batch of hidden states [1, T, H] to run it on."""

    block: nn.Module
    run: Callable[[Tensor], Tensor]
    hidden: Tensor

    @property
    def width(self) -> int:
        """The number of channels of the residual stream."""
        return self.hidden.shape[-1]

    @torch.no_grad()
    def output(self, changes: Mapping[str, Change] = NO_CHANGES, hidden: Tensor | None = None) -> Tensor:
        """Return the block's output where the outputs of the modules `changes` are changed."""
        with ExitStack() as stack:
            for name, change in changes.items():
                stack.enter_context(self.block.get_submodule(name).register_forward_hook(_changing(change)))
            return self.run(self.hidden if hidden is None else hidden)

    @torch.no_grad()
    def entering(self, name: str, changes: Mapping[str, Change] = NO_CHANGES) -> Tensor:
        """Return the input [T, features] of the module `name` where the outputs of the modules `changes` are
        changed."""
        seen: list[Tensor] = []
        module = self.block.get_submodule(name)
        with module.register_forward_pre_hook(lambda _, entered: seen.append(entered[0].detach().clone())):
            self.output(changes)
        return seen[0].reshape(-1, seen[0].shape[-1])

    @torch.no_grad()
    def calls(self) -> list[Call]:
        """Return the calls of all modules inside the block that take and return one tensor, in order of their ends."""
        found: list[Call] = []

        def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def noted(module: nn.Module, entered: tuple[Any, ...], written: Any) -> None:
                if entered and isinstance(entered[0], Tensor) and isinstance(written, Tensor):
                    found.append(Call(name, module, entered[0].detach().clone(), written.detach().clone()))

            return noted

        with ExitStack() as stack:
            for name, module in self.block.named_modules():
                if name:
                    stack.enter_context(module.register_forward_hook(note(name)))
            self.output()
        return found


def is_matrix(module: nn.Module) -> bool:
    """Return whether the module multiplies by its matrix, adds its bias, and does nothing else."""
    return type(module) in (nn.Linear, Conv1D)


def features(module: nn.Module) -> tuple[int, int]:
    """Return the output and input features of such a module."""
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)


def silence(written: Tensor) -> Tensor:
    """Return zeros in the place of what a module wrote."""
    return torch.zeros_like(written)


def push(added: Tensor) -> Change:
    """Return the change that adds `added` to what a module writes."""
    return lambda written: written + added.reshape(written.shape).to(written)


def push_unit(unit: int, size: float, token: int | None = None) -> Change:
    """Return the change that adds `size` to one feature, of one token or of all."""

    def pushed(written: Tensor) -> Tensor:
        flat = written.clone().reshape(-1, written.shape[-1])
        flat[slice(None) if token is None else token, unit] += size
        return flat.reshape(written.shape)

    return pushed


def changed_columns(one: Tensor, other: Tensor) -> set[int]:
    """Return the features in which two inputs [T, features] differ."""
    return set(_where(one != other, 0))


def changed_tokens(one: Tensor, other: Tensor) -> set[int]:
    """Return the tokens in which two inputs [T, features] differ."""
    return set(_where(one != other, 1))


def _where(differs: Tensor, dimension: int) -> Iterator[int]:
    yield from differs.any(dim=dimension).nonzero().flatten().tolist()


def _changing(change: Change) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    return lambda _module, _entered, written: change(written)
