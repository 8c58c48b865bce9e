"""The closed-form start of a fusion: the last projection before a gap, fitted anew to what the original has after it.

A block's last projection is that of its MLP, y = W z + b, and it is added straight to the stream. The change of W (and
of b, where there is one) that brings the block's output h nearest to its target t is the ridge regression of t − h on
z, each token weighted by 1/‖t‖, so that the few states of enormous norm do not decide alone.

Where a norm stands between projection and stream, as in Gemma 2 and 3, what is added is g ⊙ y / rms(y). With y's length
taken as it is, that is linear in W again, with inputs z / rms(y) and outputs divided by the gain g; what the changed
length costs is then made up for by the gain, each channel of which has a regression of its own.

Promise: what leaves the block in another way is not changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workers.compression.accounting.architectures import ARCHITECTURES, Inventory
from workers.compression.resizing.variants import RunnableModel

_PROBE_TOLERANCE = 0.05
_NO_GAIN = 1e-3


@dataclass(frozen=True)
class Refit:
    """`ridge` is added to every direction of the projection's inputs, as part of their mean energy; of the change that
    is then best, the part `share` is made."""

    ridge: float
    share: float = 1.0


class Batches(Protocol):
    """Hidden states [n, T, H], some sequences at a time."""

    def __len__(self) -> int:
        """How many batches there are."""

    def __getitem__(self, batch: int, /) -> Tensor:
        """One of them. Raises IndexError behind the last."""


@torch.no_grad()
def refit(
    model: RunnableModel, block: nn.Module, index: int, hidden: Batches, targets: Batches, settings: Refit
) -> None:
    """Changes the block's last projection in place, so that its output for `hidden` comes nearer to the `targets`."""
    projection, norm = _last_projection(model, block), _norm_behind(model, block)
    if norm is None and not adds_to_the_stream(model, block, index, hidden[0]):
        return
    change = settings.share * regression(model, block, index, hidden, targets, settings.ridge)
    if norm is None:
        _add(projection, change)
        return
    gain = _gain(norm, hidden[0])
    _add(projection, change * torch.where(gain.abs() > _NO_GAIN, 1 / gain, 0))
    change = settings.share * _gain_regression(model, block, index, hidden, targets, settings.ridge)
    norm.weight += change.to(norm.weight)


def _add(projection: Any, change: Tensor) -> None:
    weight, bias = projection.weight, projection.bias
    rows = change[: change.shape[0] - (bias is not None)]
    weight += (rows.T if isinstance(projection, nn.Linear) else rows).to(weight)
    if bias is not None:
        bias += change[-1].to(bias)


def last_projection(inventory: Inventory) -> str:
    """The name, inside a block, of the linear layer that leaves the MLP."""
    return ARCHITECTURES[inventory.model_type].mlp.leaving


def refitted_tensors(model: RunnableModel, block: nn.Module, index: int) -> dict[str, Tensor]:
    """The last projection's weight, and where there are such, its bias and the norm behind it, by their full names."""
    mlp = ARCHITECTURES[model.inventory.model_type].mlp
    return {
        f"{model.inventory.block_prefix}.{index}.{name}.{leaf}": each.detach().cpu()
        for name in (mlp.leaving, *([mlp.norm] if mlp.norm else []))
        for leaf, each in block.get_submodule(name).named_parameters()
    }


def _last_projection(model: RunnableModel, block: nn.Module) -> Any:
    return block.get_submodule(last_projection(model.inventory))


def regression(
    model: RunnableModel, block: nn.Module, index: int, hidden: Batches, targets: Batches, ridge: float
) -> Tensor:
    """The change [in, out] of the last projection's matrix, and where it has a bias one row more, the bias's; where a
    norm follows, that of the matrix with the norm's gain."""
    projection, normed = _last_projection(model, block), _norm_behind(model, block) is not None
    gram, cross = torch.zeros(()), torch.zeros(())
    for some, wanted in _pairs(hidden, targets):
        entered, left, output = _passed(model, projection, block, index, some)
        missing = wanted.float() - output.float()
        features = entered.flatten(0, -2).float()
        if projection.bias is not None:
            features = torch.cat((features, features.new_ones(len(features), 1)), dim=1)
        if normed:
            features = features / _root_mean_square(left.flatten(0, -2).float())
        weights = 1 / wanted.flatten(0, 1).float().norm(dim=1, keepdim=True)
        weighted = features * weights
        gram = gram.to(weighted) + weighted.T @ weighted
        cross = cross.to(weighted) + weighted.T @ (missing.flatten(0, 1) * weights)
    return torch.cholesky_solve(cross.double(), torch.linalg.cholesky(_damped(gram, ridge))).float()


def _damped(gram: Tensor, ridge: float) -> Tensor:
    damped = gram.double()
    damped.diagonal().add_(ridge * damped.diagonal().mean())
    return damped


def _gain_regression(
    model: RunnableModel, block: nn.Module, index: int, hidden: Batches, targets: Batches, ridge: float
) -> Tensor:
    """The change [out] of the gain of the norm behind the last projection."""
    energy, cross = torch.zeros(()), torch.zeros(())
    for some, wanted in _pairs(hidden, targets):
        entered, _, output = _passed(model, _norm_behind(model, block), block, index, some)
        missing, states = (wanted.float() - output.float()).flatten(0, 1), entered.flatten(0, -2).float()
        weights = 1 / wanted.flatten(0, 1).float().norm(dim=1, keepdim=True)
        weighted = states / _root_mean_square(states) * weights
        energy = energy.to(weighted) + weighted.square().sum(0)
        cross = cross.to(weighted) + (weighted * missing * weights).sum(0)
    return cross / (energy + ridge * energy.mean())


def _pairs(hidden: Batches, targets: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    return ((hidden[batch], targets[batch]) for batch in range(len(hidden)))


def _passed(
    model: RunnableModel, module: Any, block: nn.Module, index: int, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What enters and leaves one of the block's modules, and the block's output."""
    seen: list[tuple[Tensor, Tensor]] = []
    with _watched(module, lambda inputs, output: seen.append((inputs, output))):
        output = model.run(block, index, hidden)
    return *seen[0], output


def _norm_behind(model: RunnableModel, block: nn.Module) -> Any:
    """The norm between the last projection and the stream, or None."""
    name = ARCHITECTURES[model.inventory.model_type].mlp.norm
    return None if name is None else block.get_submodule(name)


def _gain(norm: Any, hidden: Tensor) -> Tensor:
    """What the norm multiplies each channel by, [H], however its weight says so."""
    return norm(torch.ones_like(hidden[0, 0])).float()  # type: ignore[no-any-return]


def _root_mean_square(states: Tensor) -> Tensor:
    """[tokens, H] to [tokens, 1]; never 0."""
    return states.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(states.dtype).tiny)


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
