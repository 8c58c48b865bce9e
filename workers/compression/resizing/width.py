"""Narrower MLPs: which hidden units go, and what the down projection must then be.

    parts = list(narrow(EditedModel(original), 1024, ids, original=original))

Units are chosen by `pruning`. All MLPs keep equally many, so that the result has the original's architecture.

Promise: block after block, each fitted on what enters it in the narrowed model to what the original makes of the same
text. Two blocks' weights are in memory; the two streams wait in a temporary directory. The same inputs give the same
bytes, resumed or not.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from workers.compression.accounting.architectures import ARCHITECTURES
from workers.compression.factors.fitting import matrix_of
from workers.compression.factors.two_streams import BlockwiseModel, StoredStates
from workers.compression.models.edited import put
from workers.compression.parts import CompressedPart, Finished
from workers.compression.resizing.pruning import Pruned, prune
from workers.compression.resizing.refit import adds_to_the_stream
from workers.compression.resizing.streams import PairedStreams

DAMPING = 1.0
"""Ridge on each hidden unit, as part of its own energy: 1 believes half of every correlation that the text shows.

Of 0.1, 0.3 and 1 it costs least on text of another kind, and hardly anything on the same kind. A part of the mean
energy does much worse: a few units fire massively, and would drown what the others have in common.
"""

FLOOR = 1e-3
"""What every unit's energy is at least taken for in the ridge, as part of the mean: a unit may never have fired."""


class ShrinkingModel(BlockwiseModel, Protocol):
    """The model to be narrowed; `models.EditedModel` is one."""

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
    start: int = 0,
    finished: Finished | None = None,
) -> Iterator[CompressedPart]:
    """Yields a part for every block of `model` that remains, from the part `start` on; `model` stays as it is.

    `ids` are calibration tokens [sequences, length]. `compensation` is how much of the difference between the two
    streams the down projection is to make up for: 0 nothing, 1 all that the text shows. When resuming, `finished` gives
    the parts before `start`. Raises ValueError for a `start` above 0 without `finished`, and where a block does not
    have `intermediate_size` hidden units.
    """
    if start and finished is None:
        raise ValueError("to resume, say where the finished parts are")
    with tempfile.TemporaryDirectory(prefix="hidden-states-") as scratch:
        streams = PairedStreams(original, model, ids, Path(scratch))
        streams.advance_original(0, model.kept[0])
        for number, (index, following) in enumerate(pairwise((*model.kept, original.inventory.blocks))):
            if number < start and finished is not None:
                streams.advance_original(index, following)
                part = finished(number)
            else:
                part = _narrow_block(streams, index, following, number, intermediate_size, compensation)
                yield part
            with model.block(index) as block:
                for name, tensor in part.tensors.items():
                    put(block, name.removeprefix(f"{part.name}."), tensor)
                streams.advance_model(block, index)


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


def _moments(batches: Iterable[tuple[Tensor, Tensor]]) -> _Moments:
    """Of the hidden units [..., inner] and the errors [..., out] of every batch."""
    moments: _Moments | None = None
    for units, errors in batches:
        moments = moments or _Moments.empty(units.shape[-1], errors.shape[-1])
        moments.add(units, errors)
    return cast("_Moments", moments)


@dataclass(frozen=True)
class _Passage:
    """What a batch leaves in a block: the MLP's hidden `units`, what it gives out, and the block's output."""

    units: Tensor
    written: Tensor
    output: Tensor


def _observe(streams: PairedStreams, block: nn.Module, index: int, following: int, leaving: str) -> _Moments:
    """The moments while the block is still wide; the original's stream moves on to what enters `following`, the next
    block that remains.

    Where the MLP writes straight into the stream, the error is that of the stream, which holds those of all blocks
    before and of those missing behind; where a norm stands between, it is that of what the MLP gives out.
    """
    found = _passages(streams.model, block, index, streams.after, leaving)
    if adds_to_the_stream(streams.model, block, index, streams.after[0]):
        streams.advance_original(index, following)
        targets = (streams.before[batch].float() for batch in range(len(streams.before)))
        return _moments((each.units, wanted - each.output) for each, wanted in zip(found, targets, strict=True))
    with streams.original.block(index) as whole:
        originals = _passages(streams.original, whole, index, streams.before, leaving)
        moments = _moments(
            (each.units, wanted.written.float() - each.written) for each, wanted in zip(found, originals, strict=True)
        )
    streams.advance_original(index, following)
    return moments


def _passages(
    model: BlockwiseModel, block: nn.Module, index: int, states: StoredStates, leaving: str
) -> Iterator[_Passage]:
    """One for each batch."""
    return (_pass(model, block, index, states[batch], leaving) for batch in range(len(states)))


def _pass(model: BlockwiseModel, block: nn.Module, index: int, hidden: Tensor, leaving: str) -> _Passage:
    seen: list[tuple[Tensor, Tensor]] = []
    with block.get_submodule(leaving).register_forward_hook(lambda _, entered, left: seen.append((entered[0], left))):
        output = model.run(block, index, hidden)
    units, written = seen[0]
    return _Passage(units, written, output)


def _narrow_block(
    streams: PairedStreams,
    index: int,
    following: int,
    number: int,
    size: int,
    compensation: float,
) -> CompressedPart:
    inventory = streams.model.inventory
    mlp = ARCHITECTURES[inventory.model_type].mlp
    whole = f"{inventory.block_prefix}.{index}"
    site = f"{whole}.{mlp.leaving}"
    with streams.model.block(index) as block:
        moments = _observe(streams, block, index, following, mlp.leaving)
        refit = _Refit(moments, block.get_submodule(mlp.leaving), compensation)
        found = prune(refit.target, refit.units, size)
        tensors = refit.tensors(mlp.leaving, found)
        for name in mlp.entering:
            tensors |= _rows(name, block.get_submodule(name), found, mlp.stacked)
    return CompressedPart(
        number, whole, {}, {f"{whole}.{name}": tensor for name, tensor in tensors.items()}, {site: found.error}
    )


class _Refit:
    """The down projection's problem: `target` [out, inner], the matrix that makes up for the stream's error, and the
    damped second moments `units` [inner, inner].

    Where there is a bias, it takes the means exactly, and only what varies is left to the columns.
    """

    def __init__(self, moments: _Moments, down: nn.Module, compensation: float) -> None:
        self._down = down
        self._bias = cast("Tensor | None", down.bias)
        self._matrix = matrix_of(down).detach().cpu().double()
        self._unit_mean = moments.unit_sums.double() / moments.tokens
        self._error_mean = compensation * moments.error_sums.double() / moments.tokens
        self.units = moments.units.double() / moments.tokens
        cross = compensation * moments.cross.double() / moments.tokens
        if self._bias is not None:
            self.units -= torch.outer(self._unit_mean, self._unit_mean)
            cross -= torch.outer(self._error_mean, self._unit_mean)
        energies = self.units.diagonal().clone()
        ridge = DAMPING * (energies + FLOOR * energies.mean())
        self.units.diagonal().add_(ridge.clamp_min(torch.finfo(torch.float64).tiny))
        self.target = self._matrix + torch.linalg.solve(self.units, cross.T).T

    def tensors(self, name: str, found: Pruned) -> dict[str, Tensor]:
        """The refitted weight and bias."""
        tensors = {f"{name}.weight": _as_stored(self._down, found.columns)}
        if self._bias is not None:
            mean = self._matrix @ self._unit_mean + self._error_mean
            shift = mean - found.columns @ self._unit_mean[found.kept]
            tensors[f"{name}.bias"] = (self._bias.cpu().double() + shift).to(self._bias)
        return tensors


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
