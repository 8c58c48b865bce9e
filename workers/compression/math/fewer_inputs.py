"""A projection with fewer inputs: what those that stay must make up for, and what the projection must then be.

Promise: where there is a bias, it takes the means exactly, and only what varies is left to the columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from workers.compression.math.fitting import matrix_of
from workers.compression.math.pruning import Pruned

FLOOR = 1e-3
"""What every input's energy is at least taken for in the ridge, as part of the mean: a hidden unit may never have
fired."""


@dataclass
class Moments:
    """Of the inputs h [in] and the error e [out] that the model makes while all are there, summed over tokens:
    `inputs` = Σ h hᵀ, `cross` = Σ e hᵀ, and the plain sums of both."""

    inputs: Tensor
    cross: Tensor
    input_sums: Tensor
    error_sums: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, inner: int, out: int) -> "Moments":
        return cls(torch.zeros(inner, inner), torch.zeros(out, inner), torch.zeros(inner), torch.zeros(out))

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> "Moments":
        """Of the inputs [..., in] and the errors [..., out] of every batch, of which there is at least one."""
        moments: Moments | None = None
        for inputs, errors in batches:
            moments = moments or cls.empty(inputs.shape[-1], errors.shape[-1])
            moments.add(inputs, errors)
        return cast("Moments", moments)

    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """[..., in] and [..., out], of the same tokens."""
        h, e = inputs.flatten(0, -2).float(), errors.flatten(0, -2).float()
        self.inputs += (h.T @ h).cpu()
        self.cross += (e.T @ h).cpu()
        self.input_sums += h.sum(0).cpu()
        self.error_sums += e.sum(0).cpu()
        self.tokens += len(h)


class Compensation:
    """The projection's problem: `target` [out, in], the matrix that makes up for the part `share` of the error, and the
    damped second moments `inputs` [in, in].

    `damping` is a ridge on each input, as part of its own energy: 1 believes half of every correlation that the text
    shows. A part of the mean energy does much worse in an MLP: a few hidden units fire massively, and would drown what
    the others have in common.
    """

    def __init__(self, moments: Moments, projection: nn.Module, share: float, damping: float) -> None:
        self._projection = projection
        self._bias = cast("Tensor | None", projection.bias)
        self._matrix = matrix_of(projection).detach().cpu().double()
        self._input_mean = moments.input_sums.double() / moments.tokens
        self._error_mean = share * moments.error_sums.double() / moments.tokens
        self.inputs = moments.inputs.double() / moments.tokens
        cross = share * moments.cross.double() / moments.tokens
        if self._bias is not None:
            self.inputs -= torch.outer(self._input_mean, self._input_mean)
            cross -= torch.outer(self._error_mean, self._input_mean)
        energies = self.inputs.diagonal().clone()
        ridge = damping * (energies + FLOOR * energies.mean())
        # Where nothing ever came in, any ridge gives the same fit.
        self.inputs.diagonal().add_(ridge.clamp_min(torch.finfo(torch.float64).tiny) if energies.any() else 1.0)
        self.target = self._matrix + torch.linalg.solve(self.inputs, cross.T).T

    def tensors(self, name: str, found: Pruned) -> dict[str, Tensor]:
        """The weight and bias of the projection of that name, fitted to the inputs that stay."""
        tensors = {f"{name}.weight": _as_stored(self._projection, found.columns)}
        if self._bias is not None:
            mean = self._matrix @ self._input_mean + self._error_mean
            shift = mean - found.columns @ self._input_mean[found.kept]
            tensors[f"{name}.bias"] = (self._bias.cpu().double() + shift).to(self._bias)
        return tensors


def rows_of(name: str, module: nn.Module, kept: Tensor) -> dict[str, Tensor]:
    """The rows of those outputs that stay, of the linear module of that name, and their biases."""
    matrix, bias = matrix_of(module), cast("Tensor | None", module.bias)
    rows = kept.to(matrix.device)
    tensors = {f"{name}.weight": _as_stored(module, matrix[rows])}
    return tensors if bias is None else {**tensors, f"{name}.bias": bias[rows].clone()}


def _as_stored(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix [out, in] the way round that the module stores it, in its dtype."""
    weight = cast("Tensor", module.weight)
    return (matrix if isinstance(module, nn.Linear) else matrix.T).to(weight).contiguous()
