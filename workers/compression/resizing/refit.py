"""The closed-form start of a fusion: the last projection before a gap, fitted anew to what the original has after it.

A block's last projection is that of its MLP, y = W z + b, and it is added straight to the stream. The change of W (and
of b, where there is one) that brings the block's output h nearest to its target t is the ridge regression of t − h on
z, each token weighted by 1/‖t‖, so that the few states of enormous norm do not decide alone.

Promise: where a norm stands between projection and stream, as in Gemma 2 and 3, nothing is changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.compression.accounting.architectures import ARCHITECTURES, Inventory
from workers.compression.resizing.variants import RunnableModel, run_in_batches

_PROBE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Refit:
    """`ridge` is added to every direction of the projection's inputs, as part of their mean energy; of the change that
    is then best, the part `share` is made."""

    ridge: float
    share: float = 1.0


@torch.no_grad()
def refit(
    model: RunnableModel, block: nn.Module, index: int, hidden: Tensor, targets: Tensor, settings: Refit
) -> Tensor:
    """Changes the block's last projection in place; returns the output [N, T, H] that it now has for `hidden`.

    `targets` [N, T, H] are what the output should be.
    """
    projection = _last_projection(model, block)
    if adds_to_the_stream(model, block, index, hidden):
        change = regression(model, block, index, hidden, targets, settings.ridge) * settings.share
        weight, bias = projection.weight, projection.bias
        rows = change[: change.shape[0] - (bias is not None)]
        weight += (rows.T if isinstance(projection, nn.Linear) else rows).to(weight)
        if bias is not None:
            bias += change[-1].to(bias)
    return run_in_batches(model, block, index, hidden)


def last_projection(inventory: Inventory) -> str:
    """The name, inside a block, of the linear layer that leaves the MLP."""
    return ARCHITECTURES[inventory.model_type].mlp.leaving


def projection_tensors(model: RunnableModel, block: nn.Module, index: int) -> dict[str, Tensor]:
    """The last projection's weight and, where there is one, bias, by their full names."""
    name = last_projection(model.inventory)
    prefix = f"{model.inventory.block_prefix}.{index}.{name}"
    return {f"{prefix}.{leaf}": each.detach().cpu() for leaf, each in block.get_submodule(name).named_parameters()}


def _last_projection(model: RunnableModel, block: nn.Module) -> Any:
    return block.get_submodule(last_projection(model.inventory))


def regression(
    model: RunnableModel, block: nn.Module, index: int, hidden: Tensor, targets: Tensor, ridge: float
) -> Tensor:
    """The change [in, out] of the last projection's matrix, and where it has a bias one row more, the bias's."""
    projection = _last_projection(model, block)
    gram, cross = torch.zeros(()), torch.zeros(())
    for some, wanted in zip(torch.split(hidden, 1), torch.split(targets, 1), strict=True):
        entered: list[Tensor] = []
        with _watched(projection, lambda inputs, output, seen=entered: seen.append(inputs)):  # type: ignore[misc]
            missing = wanted.float() - model.run(block, index, some).float()
        features = entered[0].flatten(0, -2).float()
        if projection.bias is not None:
            features = torch.cat((features, features.new_ones(len(features), 1)), dim=1)
        weights = 1 / wanted.flatten(0, 1).float().norm(dim=1, keepdim=True)
        weighted = features * weights
        gram = gram.to(weighted) + weighted.T @ weighted
        cross = cross.to(weighted) + weighted.T @ (missing.flatten(0, 1) * weights)
    damped = gram.double()
    damped.diagonal().add_(ridge * damped.diagonal().mean())
    return torch.cholesky_solve(cross.double(), torch.linalg.cholesky(damped)).float()


@torch.no_grad()
def adds_to_the_stream(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor) -> bool:
    """Whether a change of the last projection's output is the same change of the block's, tried out on one token of
    the width and kind of `hidden`."""
    generator = torch.Generator().manual_seed(0)
    token, added = torch.randn(2, 1, 1, hidden.shape[-1], generator=generator).to(hidden)
    # Far above rounding in bfloat16, and more than a norm behind the projection would let through.
    added *= 8
    before = model.run(block, index, token)
    with _watched(_last_projection(model, block), lambda inputs, output: output + added.view_as(output)):
        after = model.run(block, index, token)
    return bool((after - before - added).norm() <= _PROBE_TOLERANCE * added.norm())


@contextmanager
def _watched(module: nn.Module, watch: Callable[[Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """For a while `watch(inputs, output)` sees what passes through, and may give another output."""
    handle = module.register_forward_hook(lambda _, arguments, output: watch(arguments[0], output))
    try:
        yield
    finally:
        handle.remove()
