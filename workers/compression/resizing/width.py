"""Narrower MLPs: which hidden units go, and what the down projection must then be.

    parts = list(narrow(EditedModel(original), 1024, ids, original=original))

Units are chosen by `pruning`. All MLPs keep equally many, so that the result has the original's architecture.

Promise: block after block, each fitted on what enters it in the narrowed model to what the original makes of the same
text. Two blocks' weights are in memory; the two streams wait in a temporary directory. The same inputs give the same
bytes, resumed or not.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from workers.compression.accounting.architectures import ARCHITECTURES
from workers.compression.factors.fitting import matrix_of
from workers.compression.factors.two_streams import BlockwiseModel, StoredStates, embedded
from workers.compression.models.edited import put
from workers.compression.parts import CompressedPart, Finished
from workers.compression.resizing.pruning import Pruned, prune

DAMPING = 1.0
"""Ridge on each hidden unit, as part of its own energy: 1 believes half of every correlation that the text shows.

Of 0.1, 0.3 and 1 it costs least on text of another kind, and hardly anything on the same kind. A part of the mean
energy does much worse: a few units fire massively, and would drown what the others have in common.
"""

FLOOR = 1e-3
"""What every unit's energy is at least taken for in the ridge, as part of the mean: a unit may never have fired."""


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
        streams = _Streams(original, model, ids, Path(scratch))
        for index in range(original.inventory.blocks):
            if index not in model.kept:
                streams.advance_original(index)
                continue
            number = model.kept.index(index)
            if number < start and finished is not None:
                streams.advance_original(index)
                part = finished(number)
            else:
                part = _narrow_block(streams, index, number, intermediate_size, compensation)
                yield part
            streams.advance_narrowed(index, part)


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

    def __init__(self, original: BlockwiseModel, model: BlockwiseModel, ids: Tensor, scratch: Path) -> None:
        self.original, self.model = original, model
        self.before = StoredStates(scratch / "original", embedded(original, ids))
        self.after = StoredStates(scratch / "narrowed", embedded(model, ids))

    def advance_original(self, index: int) -> None:
        with self.original.block(index) as block:
            for batch in range(len(self.before)):
                self.before.advance(batch, self.original.run(block, index, self.before[batch]))

    def advance_narrowed(self, index: int, part: CompressedPart) -> None:
        with self.model.block(index) as block:
            for name, tensor in part.tensors.items():
                put(block, name.removeprefix(f"{part.name}."), tensor)
            for batch in range(len(self.after)):
                self.after.advance(batch, self.model.run(block, index, self.after[batch]))

    def observe(self, block: nn.Module, index: int, leaving: str) -> _Moments:
        """The moments while the block is still wide; the original's stream moves on to the block's output.

        Where the MLP writes straight into the stream, the error is that of the stream, which holds those of all blocks
        before; where a norm stands between, it is that of what the MLP gives out.
        """
        moments = None
        with self.original.block(index) as whole:
            direct = self._is_direct(whole, index, leaving)
            for batch in range(len(self.before)):
                wanted = _pass(self.original, whole, index, self.before[batch], leaving)
                found = _pass(self.model, block, index, self.after[batch], leaving)
                if moments is None:
                    moments = _Moments.empty(found.units.shape[-1], found.written.shape[-1])
                error = wanted.output.float() - found.output if direct else wanted.written.float() - found.written
                moments.add(found.units, error)
                self.before.advance(batch, wanted.output)
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
    seen: list[tuple[Tensor, Tensor]] = []
    with block.get_submodule(leaving).register_forward_hook(lambda _, entered, left: seen.append((entered[0], left))):
        output = model.run(block, index, hidden)
    units, written = seen[0]
    return _Passage(units, written, output)


def _narrow_block(
    streams: _Streams,
    index: int,
    number: int,
    size: int,
    compensation: float,
) -> CompressedPart:
    inventory = streams.model.inventory
    mlp = ARCHITECTURES[inventory.model_type].mlp
    whole = f"{inventory.block_prefix}.{index}"
    site = f"{whole}.{mlp.leaving}"
    with streams.model.block(index) as block:
        moments = streams.observe(block, index, mlp.leaving)
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
