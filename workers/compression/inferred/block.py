"""What the linear layers of a block do, found by trial: which of them are the MLP, and which ends the attention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modelpress.spec.architectures.architecture import Architecture, Attention, Mlp
from modelpress.spec.errors import UnsupportedArchitecture
from workers.compression.inferred.trial import (
    Call,
    Trial,
    changed_columns,
    changed_tokens,
    features,
    is_matrix,
    push,
    push_unit,
    silence,
)
from workers.compression.math.symmetry import reorder_hidden_units

CLOSE = 1e-4
"""The relative difference up to which two outputs in float32 are the same."""
MOST_STACKED = 2


class NotUnderstood(UnsupportedArchitecture):
    """The parts of a model cannot be told from its structure."""

    code = "unsupported_architecture"


@dataclass(frozen=True)
class BlockFacts:
    """The parts of a block as they were inferred from its structure.

    Attributes:
        mlp: its MLP.
        attention: its attention, without the projections of the heads.
        layout: how its linear layers store their matrices.
        whole: modules with matrices that are not plain linear layers.
    """

    mlp: Mlp
    attention: Attention
    layout: Literal["linear", "conv1d"]
    whole: tuple[str, ...]

    @classmethod
    def of(cls, architecture: Architecture) -> Self:
        """Return what an architecture says of its blocks."""
        attention = replace(architecture.attention, heads=None)
        return cls(architecture.mlp, attention, architecture.layout, architecture.whole)


def block_facts(trial: Trial) -> BlockFacts:
    """Return what a block is made of. Raises NotUnderstood."""
    require_plain_parameters(trial.block)
    calls = trial.calls()
    linear = [call for call in calls if is_matrix(call.module)]
    names = [call.name for call in linear]
    if len(set(names)) != len(names):
        raise NotUnderstood("a linear layer of its blocks is used more than once")
    mlp = find_mlp(trial, linear)
    attention = find_attention(trial, mlp, linear, calls)
    mlp = replace(mlp, norm=_root_mean_square_norm(trial, mlp.leaving, calls))
    return BlockFacts(mlp, attention, _layout(linear), whole_modules(trial.block, set(names)))


def require_plain_parameters(block: nn.Module) -> None:
    """Raise NotUnderstood for tensors of more than two dimensions, as experts and convolutions have them."""
    for name, parameter in block.named_parameters():
        if parameter.dim() > 2:
            raise NotUnderstood(
                f"its blocks hold {name} of {parameter.dim()} dimensions, as mixtures of experts and convolutions have "
                "it; these are compressed only in architectures that are registered"
            )


def whole_modules(block: nn.Module, used: set[str]) -> tuple[str, ...]:
    """Return the modules whose matrices are no plain linear layers, or are used otherwise than by calling them."""
    return tuple(
        name
        for name, module in block.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.dim() == 2
        and not (is_matrix(module) and name in used)
    )


def _layout(linear: Sequence[Call]) -> Literal["linear", "conv1d"]:
    kinds = {type(call.module) for call in linear}
    if len(kinds) > 1:
        raise NotUnderstood("some of its linear layers store their matrices transposed, and others do not")
    return "conv1d" if kinds == {Conv1D} else "linear"


def find_mlp(trial: Trial, linear: Sequence[Call]) -> Mlp:
    """Return the block's MLP: each unit that enters it must reach one input of its last projection alone, and no other
    token. Raises NotUnderstood unless there is exactly one."""
    found = []
    for place, leaving in enumerate(linear):
        written, hidden_units = features(leaving.module)
        if written != trial.width:
            continue
        entering: dict[str, int] = {}
        for call in linear[:place]:
            stacked, rest = divmod(features(call.module)[0], hidden_units)
            if rest == 0 and stacked in range(1, MOST_STACKED + 1) and _feeds(trial, call, leaving):
                entering[call.name] = stacked
        if entering:
            found.append((entering, leaving.name))
    if len(found) != 1:
        raise NotUnderstood(
            f"a block holds {len(found) or 'no'} MLPs that are understood: plain linear layers whose outputs each "
            "reach one input of a last projection"
        )
    entering, leaving_name = found[0]
    if len(set(entering.values())) > 1 or (MOST_STACKED in entering.values() and len(entering) > 1):
        raise NotUnderstood("the layers that enter its MLP hold different numbers of matrices")
    mlp = Mlp(tuple(entering), leaving_name, next(iter(entering.values())))
    if mlp.stacked == 1:
        _require_exchangeable(trial, mlp)
    return mlp


def _feeds(trial: Trial, call: Call, leaving: Call) -> bool:
    """Return whether every unit that `call` writes reaches one input of `leaving`, in its own token."""
    hidden_units = leaving.entered.shape[-1]
    size = 3 * float(call.written.abs().max()) + 1
    plain = trial.entering(leaving.name)
    tried = {0, hidden_units // 2, hidden_units - 1}
    for unit in sorted(tried | {call.written.shape[-1] - 1 - unit for unit in tried}):
        reached: set[int] = set()
        for signed in (size, -size):
            reached |= changed_columns(plain, trial.entering(leaving.name, {call.name: push_unit(unit, signed)}))
            tokens = trial.entering(leaving.name, {call.name: push_unit(unit, signed, token=0)})
            if changed_tokens(plain, tokens) - {0}:
                return False
        if reached != {unit % hidden_units}:
            return False
    return True


def _require_exchangeable(trial: Trial, mlp: Mlp) -> None:
    """Raise NotUnderstood unless the hidden units may stand in another order."""
    _, hidden_units = features(trial.block.get_submodule(mlp.leaving))
    before = trial.output()
    turned = torch.arange(hidden_units - 1, -1, -1)
    reorder_hidden_units(trial.block, mlp, turned)
    try:
        after = trial.output()
    finally:
        reorder_hidden_units(trial.block, mlp, turned)
    if not same(after, before):
        raise NotUnderstood("what its MLP computes depends on the order of its hidden units")


def find_attention(trial: Trial, mlp: Mlp, linear: Sequence[Call], calls: Sequence[Call]) -> Attention:
    """Return the attention: without the output of its last projection, no token may depend on another one.

    Raises NotUnderstood where there is no such projection.
    """
    other = trial.hidden.clone()
    other[:, 0] = other[:, 0].flip(-1) + 1
    if not _reaches_others(trial.output(), trial.output(hidden=other)):
        raise NotUnderstood("the first token of a text reaches no other one in a block")
    for call in reversed(linear):
        if call.name in mlp.sites or features(call.module)[0] != trial.width:
            continue
        without = {call.name: silence}
        if not _reaches_others(trial.output(without), trial.output(without, hidden=other)):
            scaled, norm = _way_out(trial, call, mlp, calls)
            return Attention(call.name, norm, scaled)
    raise NotUnderstood("what its blocks mix tokens by does not end in one projection, as attention does")


def _reaches_others(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs differ behind the first token."""
    return not same(one[:, 1:], other[:, 1:])


def _way_out(trial: Trial, call: Call, mlp: Mlp, calls: Sequence[Call]) -> tuple[bool, str | None]:
    """Return whether the attention's output is scaled before it is added to the residual stream, and the norm between
    them. What is neither added as it is nor behind a norm counts as scaled."""
    without = {mlp.leaving: silence}
    added = torch.randn(call.written.shape, generator=torch.Generator().manual_seed(2)) * call.written.abs().max()
    moved = trial.output(without | {call.name: push(added)}) - trial.output(without)
    if same(moved, added.reshape(moved.shape).to(moved)):
        return False, None
    if (norm := _norm_behind(call, calls)) is not None:
        return False, norm
    stream = trial.hidden + call.written.reshape(trial.hidden.shape)
    return not any(each.entered.shape == stream.shape and same(each.entered, stream) for each in calls), None


def _norm_behind(call: Call, calls: Sequence[Call]) -> str | None:
    """Return the module that reads exactly what `call` wrote, and whose parameters are vectors of its width."""
    for each in calls:
        if (
            is_matrix(each.module)
            or each.entered.shape != call.written.shape
            or each.written.shape != each.entered.shape
        ):
            continue
        sizes = {tuple(parameter.shape) for parameter in each.module.parameters()}
        if sizes == {call.written.shape[-1:]} and torch.equal(each.entered, call.written):
            return each.name
    return None


def _root_mean_square_norm(trial: Trial, leaving: str, calls: Sequence[Call]) -> str | None:
    """Return the norm behind the MLP's last projection if it divides by the root mean square and multiplies by a gain;
    refits rely on that."""
    call = next(each for each in calls if each.name == leaving)
    if (name := _norm_behind(call, calls)) is None:
        return None
    norm: Any = trial.block.get_submodule(name)
    states = call.written.reshape(-1, call.written.shape[-1])
    with torch.no_grad():
        gain = norm(torch.ones_like(states[:1]))
        expected = gain * states / states.square().mean(1, keepdim=True).sqrt()
        return name if same(norm(states), expected, 1e-2) else None


def same(one: Tensor, other: Tensor, close: float = CLOSE) -> bool:
    """Return whether two tensors are equal up to rounding."""
    return float((one - other).norm()) <= close * max(float(other.norm()), 1e-12)
