"""Narrower MLPs: which hidden units go, and what the down projection must then be.

    parts = list(narrow(EditedModel(original), 1024, ids, original=original))

Units are chosen by `pruning`. All MLPs keep equally many, so that the result has the original's architecture.

Promise: block after block, each fitted on what enters it in the narrowed model to what the original makes of the same
text. Two blocks' weights and the two streams are in memory. The same inputs give the same bytes, resumed or not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from workers.compression.architectures import ARCHITECTURES, Mlp
from workers.compression.edits import put
from workers.compression.fitting import matrix_of
from workers.compression.pruning import Pruned, prune
from workers.compression.sensitivity import Sensitivity
from workers.compression.sequential import BATCH, BlockwiseModel, CompressedPart

DAMPING = 0.02
"""Ridge on the second moments of the hidden units, as part of their mean: it holds the refitted columns back."""


class ShrinkingModel(BlockwiseModel, Protocol):
    """The model to be narrowed; `edits.EditedModel` is one."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The original's numbers of the blocks that remain, in order."""


@torch.no_grad()
def narrow(
    model: ShrinkingModel,
    intermediate_size: int,
    ids: Tensor,
    *,
    original: BlockwiseModel,
    compensation: float = 0.5,
    sensitivities: Mapping[str, Sensitivity] | None = None,
    start: int = 0,
    finished: Callable[[int], CompressedPart] | None = None,
) -> Iterator[CompressedPart]:
    """Yields a part for every block of `model` that remains, from the part `start` on; `model` stays as it is.

    `ids` are calibration tokens [sequences, length]. `compensation` is how much of the difference between the two
    streams the down projection is to make up for: 0 nothing, 1 all that the text shows. `sensitivities` weigh the
    outputs when units are chosen. When resuming, `finished` gives the parts before `start`. Raises ValueError for a
    `start` above 0 without `finished`, and where a block does not have `intermediate_size` hidden units.
    """
    if start and finished is None:
        raise ValueError("to resume, say where the finished parts are")
    known = sensitivities or {}
    mlp = ARCHITECTURES[model.inventory.model_type].mlp
    streams = _Streams(original, model, ids)
    for index in range(original.inventory.blocks):
        if index not in model.kept:
            streams.advance_original(index)
            continue
        number = model.kept.index(index)
        prefix = f"{model.inventory.block_prefix}.{index}."
        with model.block(index) as block:
            if number < start and finished is not None:
                streams.advance_original(index)
                part = finished(number)
            else:
                moments = streams.observe(block, index, mlp.leaving)
                site = f"{prefix}{mlp.leaving}"
                found = _prune(block, mlp, moments, intermediate_size, compensation, known.get(site))
                tensors = {prefix + name: tensor for name, tensor in found.tensors.items()}
                part = CompressedPart(number, prefix.removesuffix("."), {}, tensors, {site: found.error})
            for name, tensor in part.tensors.items():
                put(block, name.removeprefix(prefix), tensor)
            streams.advance_narrowed(block, index)
        if number >= start:
            yield part


@dataclass
class _Moments:
    """Of the hidden units h [inner] and the error e [out] that the block before its narrowing makes, summed over
    tokens: `units` = Σ h hᵀ, `cross` = Σ e hᵀ, and the plain sums of both."""

    units: Tensor
    cross: Tensor
    unit_sums: Tensor
    error_sums: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, inner: int, out: int) -> "_Moments":
        return cls(torch.zeros(inner, inner), torch.zeros(out, inner), torch.zeros(inner), torch.zeros(out))

    def add(self, units: Tensor, errors: Tensor) -> None:
        """[..., inner] and [..., out], of the same tokens."""
        h, e = units.flatten(0, -2).float(), errors.flatten(0, -2).float()
        self.units += (h.T @ h).cpu()
        self.cross += (e.T @ h).cpu()
        self.unit_sums += h.sum(0).cpu()
        self.error_sums += e.sum(0).cpu()
        self.tokens += len(h)


@dataclass(frozen=True)
class _Passage:
    """What a batch leaves in a block: the MLP's hidden `units`, what it gives out, and the block's output."""

    units: Tensor
    written: Tensor
    output: Tensor


class _Streams:
    """The hidden states before the current block, of the original and of the model that is narrowed, in batches."""

    def __init__(self, original: BlockwiseModel, model: BlockwiseModel, ids: Tensor) -> None:
        self.original, self.model = original, model
        self.before = [original.hidden(batch) for batch in torch.split(ids, BATCH)]
        self.after = [model.hidden(batch) for batch in torch.split(ids, BATCH)]

    def advance_original(self, index: int) -> None:
        with self.original.block(index) as block:
            self.before = [self.original.run(block, index, hidden) for hidden in self.before]

    def advance_narrowed(self, block: nn.Module, index: int) -> None:
        self.after = [self.model.run(block, index, hidden) for hidden in self.after]

    def observe(self, block: nn.Module, index: int, leaving: str) -> _Moments:
        """The moments while the block is still wide; the original's stream moves on to the block's output.

        Where the MLP writes straight into the stream, the error is that of the stream, which holds those of all blocks
        before; where a norm stands between, it is that of what the MLP gives out.
        """
        moments = None
        with self.original.block(index) as whole:
            direct = self._is_direct(whole, index, leaving)
            for batch, (before, after) in enumerate(zip(self.before, self.after, strict=True)):
                wanted = _pass(self.original, whole, index, before, leaving)
                found = _pass(self.model, block, index, after, leaving)
                if moments is None:
                    moments = _Moments.empty(found.units.shape[-1], found.written.shape[-1])
                error = wanted.output.float() - found.output if direct else wanted.written.float() - found.written
                moments.add(found.units, error)
                self.before[batch] = wanted.output
        return cast("_Moments", moments)

    def _is_direct(self, block: nn.Module, index: int, leaving: str) -> bool:
        """Whether the block's output grows by what the MLP gives out when it gives out that much more."""
        hidden = self.before[0][:1]
        once = _pass(self.original, block, index, hidden, leaving)
        with block.get_submodule(leaving).register_forward_hook(lambda _, __, output: 2 * output):
            twice = self.original.run(block, index, hidden)
        grown = twice.float() - once.output.float()
        written = once.written.float().view_as(grown)
        return bool((grown - written).norm() < 0.5 * written.norm())


def _pass(model: BlockwiseModel, block: nn.Module, index: int, hidden: Tensor, leaving: str) -> _Passage:
    seen: list[Tensor] = []
    with block.get_submodule(leaving).register_forward_hook(lambda _, entered, left: seen.extend((entered[0], left))):
        output = model.run(block, index, hidden)
    return _Passage(*seen, output)


@dataclass(frozen=True)
class _Narrowed:
    """The tensors of a narrowed MLP by their names in the block, and the relative error of what it gives out."""

    tensors: Mapping[str, Tensor]
    error: float


def _prune(
    block: nn.Module, mlp: Mlp, moments: _Moments, size: int, compensation: float, sensitivity: Sensitivity | None
) -> _Narrowed:
    down = block.get_submodule(mlp.leaving)
    matrix = matrix_of(down).detach().cpu().double()
    bias = cast("Tensor | None", down.bias)
    units, cross = moments.units.double() / moments.tokens, moments.cross.double() / moments.tokens
    unit_mean, error_mean = moments.unit_sums.double() / moments.tokens, moments.error_sums.double() / moments.tokens
    if bias is not None:
        # The bias takes the means exactly, so that only what varies is left to the columns.
        units -= torch.outer(unit_mean, unit_mean)
        cross -= torch.outer(error_mean, unit_mean)
    units.diagonal().add_(DAMPING * units.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny))
    target = matrix + compensation * torch.linalg.solve(units, cross.T).T
    found = prune(target, units, size, None if sensitivity is None else sensitivity.outputs)
    tensors = {}
    for name in mlp.entering:
        tensors |= _rows(name, block.get_submodule(name), found, mlp.stacked)
    tensors[f"{mlp.leaving}.weight"] = _as_stored(down, found.columns)
    if bias is not None:
        shift = compensation * error_mean + matrix @ unit_mean - found.columns @ unit_mean[found.kept]
        tensors[f"{mlp.leaving}.bias"] = (bias.cpu().double() + shift).to(bias)
    return _Narrowed(tensors, found.error)


def _rows(name: str, module: nn.Module, found: Pruned, stacked: int) -> dict[str, Tensor]:
    """The rows of the surviving units in a projection that enters the MLP, and their biases."""
    matrix, bias = matrix_of(module), cast("Tensor | None", module.bias)
    units = len(matrix) // stacked
    rows = torch.cat([found.kept + part * units for part in range(stacked)]).to(matrix.device)
    tensors = {f"{name}.weight": _as_stored(module, matrix[rows])}
    return tensors if bias is None else {**tensors, f"{name}.bias": bias[rows].clone()}


def _as_stored(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix [out, in] the way round that the module stores it, in its dtype."""
    weight = cast("Tensor", module.weight)
    return (matrix if isinstance(module, nn.Linear) else matrix.T).to(weight).contiguous()
