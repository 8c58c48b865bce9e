"""Refit, in closed form, the projections that add to the residual stream to the original's hidden states.

A block's last projection is that of its MLP, y = W z + b. Its output is added straight to the residual stream. The
change of W (and of b, if there is one) that brings the block's output h nearest to its target t is the ridge regression
of t − h on z. Each token is weighted by 1/‖t‖, so that the few states of enormous norm do not decide alone. The output
projection of the attention is refitted in the same way to the residual stream behind it, if it adds straight to it.

If a norm stands between projection and residual stream, as in Gemma 2 and 3, the block adds g ⊙ y / rms(y). With rms(y)
held fixed, this is linear in W again, with inputs z / rms(y) and outputs divided by the gain g. The gain then makes up
for the changed rms(y); each of its channels has a regression of its own.

Promise: a block whose last projection reaches its output in any other way is left unchanged.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from modelpress.spec.architectures import architecture_named
from modelpress.spec.inventory import Inventory
from workers.compression.math.degenerate import ridge_of
from workers.compression.models.protocols import RunnableModel
from workers.compression.steps.passages import passage, passage_up_to

_PROBE_TOLERANCE = 0.05
_NO_GAIN = 1e-3
_SILENT = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Refit:
    """Settings of a refit.

    Attributes:
        ridge: ridge parameter, as a fraction of the mean energy of the projection's inputs.
        share: fraction of the fitted change that is applied, 0 to 1.
    """

    ridge: float
    share: float = 1.0


class Batches(Protocol):
    """Batches of hidden states [n, T, H]."""

    def __iter__(self) -> Iterator[Tensor]:
        """Yield every batch, from the first."""

    def __getitem__(self, batch: int, /) -> Tensor:
        """Return one batch. Raises IndexError behind the last."""


@torch.no_grad()
def refit(
    model: RunnableModel, block: nn.Module, index: int, hidden: Batches, targets: Batches, settings: Refit
) -> None:
    """Refit the block's last projection, in place, to bring the block's output for `hidden` nearer to `targets`.

    Both are batches [n, T, H]. If a norm follows the projection, its gain is refitted, too. A block whose last
    projection does not add to the residual stream is left unchanged.
    """
    name, norm = last_projection(model.inventory, block), _norm_behind(model, block)
    if name is None or (norm is None and not adds_to_residual_stream(model, block, index, hidden[0])):
        return
    projection: Any = block.get_submodule(name)
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
    """Refit the output projection of the block's attention, in place, to bring the residual stream behind it nearer to
    `targets`.

    `hidden` are batches [n, T, H] of the block's input, `targets` float32 [n, T, H] for each batch. Nothing is changed
    if the projection's output is not added to the residual stream as it is.
    """
    name = attention_projection(model.inventory, block)
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
    """Yield the residual stream behind the attention, float32 [n, T, H], for each batch of the block's input.

    These are targets for `refit_attention`. Nothing is yielded for an architecture that it leaves unchanged.
    """
    name = attention_projection(model.inventory, block)
    if name is not None:
        for some in hidden:
            yield some.float() + passage_up_to(model, block, index, some, name).written.float()


def _add(projection: Any, change: Tensor) -> None:
    """Add `change` [in, out] to the projection's weight in place; a further last row is added to its bias."""
    weight, bias = projection.weight, projection.bias
    rows = change[: change.shape[0] - (bias is not None)]
    weight += (rows.T if isinstance(projection, nn.Linear) else rows).to(weight)
    if bias is not None:
        bias += change[-1].to(bias)


def last_projection(inventory: Inventory, block: nn.Module) -> str | None:
    """Return the name, inside a block, of the last linear layer of the MLP, or of the shared experts of a mixture.

    None if the block has neither.
    """
    architecture = architecture_named(inventory.model_type)
    shared = None if architecture.experts is None else architecture.experts.shared
    named = (mlp.leaving for mlp in (architecture.mlp, shared) if mlp is not None)
    return next((name for name in named if _has(block, name)), None)


def attention_projection(inventory: Inventory, block: nn.Module) -> str | None:
    """Return the name, inside a block, of the attention's output projection.

    None if its output is not added to the residual stream as it is, or the block has no attention.
    """
    attention = architecture_named(inventory.model_type).attention
    return attention.leaving if attention.adds and _has(block, attention.leaving) else None


def _has(block: nn.Module, name: str) -> bool:
    return any(name == each for each, _ in block.named_modules())


def refitted_tensors(
    model: RunnableModel, block: nn.Module, index: int, *, attention: bool = False
) -> dict[str, Tensor]:
    """Return, by full name, the tensors that `refit` changes; with `attention` also those of `refit_attention`.

    These are the parameters of the projections, and of the norm behind the last one if there is one.
    """
    norm = architecture_named(model.inventory.model_type).mlp.norm
    behind_attention = attention_projection(model.inventory, block) if attention else None
    return {
        f"{model.inventory.block_prefix}.{index}.{name}.{leaf}": each.detach()
        for name in (behind_attention, last_projection(model.inventory, block), norm)
        if name is not None
        for leaf, each in block.get_submodule(name).named_parameters()
    }


@dataclass(frozen=True)
class _Observed:
    """One batch of a regression.

    Attributes:
        features: inputs [tokens, in].
        missing: differences [tokens, out] that the regression is to explain.
        wanted: target states [tokens, H], whose norms weight the tokens.
    """

    features: Tensor
    missing: Tensor
    wanted: Tensor


def _regression(
    model: RunnableModel, block: nn.Module, index: int, hidden: Batches, targets: Batches, ridge: float
) -> Tensor:
    """Return the fitted change [in, out] of the last projection's matrix; the last row is the bias's if it has one.

    If a norm follows, the change includes the norm's gain as a factor.
    """
    name = cast("str", last_projection(model.inventory, block))
    projection: Any = block.get_submodule(name)
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
    """Return the inputs [..., in] as float32 [tokens, in], with a column of ones if the projection has a bias."""
    features = entered.flatten(0, -2).float()
    return features if projection.bias is None else torch.cat((features, features.new_ones(len(features), 1)), dim=1)


def _ridge_regression(observed: Iterable[_Observed], ridge: float) -> Tensor:
    """Return the solution [in, out] of the ridge regression, each token weighted by 1/‖wanted‖."""
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
    """Return the fitted change [out] of the gain of the norm behind the last projection."""
    name = cast("str", architecture_named(model.inventory.model_type).mlp.norm)
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
    """Return the norm between the last projection and the residual stream, or None."""
    name = architecture_named(model.inventory.model_type).mlp.norm
    return None if name is None else block.get_submodule(name)


def _gain(norm: Any, hidden: Tensor) -> Tensor:
    """Return the factor [H] by which the norm multiplies each channel.

    It is measured, because some norms store the factor minus 1.
    """
    return norm(torch.ones_like(hidden[0, 0])).float()  # type: ignore[no-any-return]


def _root_mean_square(states: Tensor) -> Tensor:
    """Return the root mean square [tokens, 1] of states [tokens, H]; never 0."""
    return states.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(states.dtype).tiny)


@torch.no_grad()
def adds_to_residual_stream(model: RunnableModel, block: nn.Module, index: int, hidden: Tensor) -> bool:
    """Return whether a change of the last projection's output changes the block's output by the same amount.

    This is tried out on one random token with the width, dtype and device of `hidden`.
    """
    generator = torch.Generator().manual_seed(0)
    token, added = torch.randn(2, 1, 1, hidden.shape[-1], generator=generator).to(hidden)
    # Far above rounding in bfloat16, and more than a norm behind the projection would let through.
    added *= 8
    before = model.run(block, index, token)

    def push(_module: nn.Module, _entered: tuple[Any, ...], written: Tensor) -> Tensor:
        return written.add(added.view_as(written))

    projection = block.get_submodule(cast("str", last_projection(model.inventory, block)))
    with projection.register_forward_hook(push):
        after = model.run(block, index, token)
    return bool((after - before - added).norm() <= _PROBE_TOLERANCE * added.norm())
