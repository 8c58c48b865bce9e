"""The closed-form start of a fusion: projections into the stream, fitted anew to what the original has there.

A block's last projection is that of its MLP, y = W z + b, and it is added straight to the stream. The change of W (and
of b, where there is one) that brings the block's output h nearest to its target t is the ridge regression of t − h on
z, each token weighted by 1/‖t‖, so that the few states of enormous norm do not decide alone. The output projection of
the attention, where it is added straight to the stream, is refitted in the same way to the stream behind it.

Where a norm stands between projection and stream, as in Gemma 2 and 3, what is added is g ⊙ y / rms(y). With y's length
taken as it is, that is linear in W again, with inputs z / rms(y) and outputs divided by the gain g; what the changed
length costs is then made up for by the gain, each channel of which has a regression of its own.

Promise: what leaves the block in another way is not changed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from workers.compression.math.degenerate import ridge_of
from workers.compression.spec.architectures import ARCHITECTURES
from workers.compression.spec.inventory import Inventory
from workers.compression.steps.passages import passage, passage_up_to
from workers.compression.steps.variants import RunnableModel

_PROBE_TOLERANCE = 0.05
_NO_GAIN = 1e-3
_SILENT = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Refit:
    """`ridge` is added to every direction of the projection's inputs, as part of their mean energy; of the change that
    is then best, the part `share` is made."""

    ridge: float
    share: float = 1.0


class Batches(Protocol):
    """Hidden states [n, T, H], some sequences at a time."""

    def __iter__(self) -> Iterator[Tensor]:
        """All of them, from the first."""

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
    change = settings.share * _regression(model, block, index, hidden, targets, settings.ridge)
    if norm is None:
        _add(projection, change)
        return
    gain = _gain(norm, hidden[0])
    _add(projection, change * torch.where(gain.abs() > _NO_GAIN, 1 / gain, 0))
    change = settings.share * _gain_regression(model, block, index, hidden, targets, settings.ridge)
    norm.weight += change.to(norm.weight)


@torch.no_grad()
def refit_attention(
    model: RunnableModel, block: nn.Module, index: int, hidden: Batches, targets: Iterable[Tensor], settings: Refit
) -> None:
    """Changes in place the output projection of the block's attention, if it is added straight to the stream, so that
    the stream behind it comes nearer to the `targets`, float32 [n, T, H] for each batch."""
    name = attention_projection(model.inventory)
    if name is None:
        return
    projection: Any = block.get_submodule(name)

    def observed() -> Iterator[_Observed]:
        for some, wanted in zip(hidden, targets, strict=True):
            seen = passage_up_to(model, block, index, some, name)
            missing = wanted - some.float() - seen.written.float()
            yield _Observed(_features(projection, seen.entered), missing.flatten(0, 1), wanted.flatten(0, 1))

    _add(projection, settings.share * _ridge_regression(observed(), settings.ridge))


def stream_behind_attention(
    model: RunnableModel, block: nn.Module, index: int, hidden: Iterable[Tensor]
) -> Iterator[Tensor]:
    """What `refit_attention` can be given as targets, batch by batch; nothing where it would do nothing."""
    name = attention_projection(model.inventory)
    if name is not None:
        for some in hidden:
            yield some.float() + passage_up_to(model, block, index, some, name).written.float()


def _add(projection: Any, change: Tensor) -> None:
    weight, bias = projection.weight, projection.bias
    rows = change[: change.shape[0] - (bias is not None)]
    weight += (rows.T if isinstance(projection, nn.Linear) else rows).to(weight)
    if bias is not None:
        bias += change[-1].to(bias)


def last_projection(inventory: Inventory) -> str:
    """The name, inside a block, of the linear layer that leaves the MLP."""
    return ARCHITECTURES[inventory.model_type].mlp.leaving


def attention_projection(inventory: Inventory) -> str | None:
    """The name, inside a block, of the linear layer by which attention adds straight to the stream; None where a norm
    stands between."""
    attention = ARCHITECTURES[inventory.model_type].attention
    return None if attention.norm is not None else attention.leaving


def refitted_tensors(
    model: RunnableModel, block: nn.Module, index: int, *, attention: bool = False
) -> dict[str, Tensor]:
    """What `refit` changes, by its full name: the last projection's weight, and where there are such, its bias and the
    norm behind it; with `attention` also what `refit_attention` does."""
    mlp = ARCHITECTURES[model.inventory.model_type].mlp
    return {
        f"{model.inventory.block_prefix}.{index}.{name}.{leaf}": each.detach().cpu()
        for name in (attention_projection(model.inventory) if attention else None, mlp.leaving, mlp.norm)
        if name is not None
        for leaf, each in block.get_submodule(name).named_parameters()
    }


def _last_projection(model: RunnableModel, block: nn.Module) -> Any:
    return block.get_submodule(last_projection(model.inventory))


@dataclass(frozen=True)
class _Observed:
    """Of some tokens: `features` [tokens, in], of which `missing` [tokens, out] is to be explained, on the way to what
    is `wanted` [tokens, H]."""

    features: Tensor
    missing: Tensor
    wanted: Tensor


def _regression(
    model: RunnableModel, block: nn.Module, index: int, hidden: Batches, targets: Batches, ridge: float
) -> Tensor:
    """The change [in, out] of the last projection's matrix, and where it has a bias one row more, the bias's; where a
    norm follows, that of the matrix with the norm's gain."""
    name, projection = last_projection(model.inventory), _last_projection(model, block)
    normed = _norm_behind(model, block) is not None

    def observed() -> Iterator[_Observed]:
        for some, wanted in zip(hidden, targets, strict=True):
            seen, output = passage(model, block, index, some, name)
            features = _features(projection, seen.entered)
            if normed:
                features = features / _root_mean_square(seen.written.flatten(0, -2).float())
            missing = wanted.float() - output.float()
            yield _Observed(features, missing.flatten(0, 1), wanted.flatten(0, 1).float())

    return _ridge_regression(observed(), ridge)


def _features(projection: Any, entered: Tensor) -> Tensor:
    """[..., in] to [tokens, in], and where the projection has a bias a column of ones more."""
    features = entered.flatten(0, -2).float()
    return features if projection.bias is None else torch.cat((features, features.new_ones(len(features), 1)), dim=1)


def _ridge_regression(observed: Iterable[_Observed], ridge: float) -> Tensor:
    """[in, out], each token weighted by the inverse norm of what is wanted."""
    gram, cross = torch.zeros(()), torch.zeros(())
    for each in observed:
        weights = 1 / each.wanted.norm(dim=1, keepdim=True).clamp_min(_SILENT)
        weighted = each.features * weights
        gram = gram.to(weighted) + weighted.T @ weighted
        cross = cross.to(weighted) + weighted.T @ (each.missing * weights)
    damped = gram.double()
    damped.diagonal().add_(ridge_of(damped.diagonal(), ridge))
    return torch.cholesky_solve(cross.double(), torch.linalg.cholesky(damped)).float()


def _gain_regression(
    model: RunnableModel, block: nn.Module, index: int, hidden: Batches, targets: Batches, ridge: float
) -> Tensor:
    """The change [out] of the gain of the norm behind the last projection."""
    name = cast("str", ARCHITECTURES[model.inventory.model_type].mlp.norm)
    energy, cross = torch.zeros(()), torch.zeros(())
    for some, wanted in zip(hidden, targets, strict=True):
        seen, output = passage(model, block, index, some, name)
        missing, states = (wanted.float() - output.float()).flatten(0, 1), seen.entered.flatten(0, -2).float()
        weights = 1 / wanted.flatten(0, 1).float().norm(dim=1, keepdim=True).clamp_min(_SILENT)
        weighted = states / _root_mean_square(states) * weights
        energy = energy.to(weighted) + weighted.square().sum(0)
        cross = cross.to(weighted) + (weighted * missing * weights).sum(0)
    return cross / (energy + ridge * energy.mean()).clamp_min(_SILENT)


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

    def push(_module: nn.Module, _entered: tuple[Any, ...], written: Tensor) -> Tensor:
        return written.add(added.view_as(written))

    projection: nn.Module = _last_projection(model, block)
    with projection.register_forward_hook(push):
        after = model.run(block, index, token)
    return bool((after - before - added).norm() <= _PROBE_TOLERANCE * added.norm())
