"""Refit a projection that loses some of its inputs, so that the remaining ones reproduce its output.

Promise: where the projection has a bias, the bias absorbs the means exactly and the columns are fitted to the
deviations from them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from workers.compression.math.fitting import matrix_of
from workers.compression.math.pruning import Pruned

FLOOR = 1e-3
"""Least energy that the ridge assumes of an input, as a fraction of the mean energy: a hidden unit may never have
fired."""


@dataclass
class Moments:
    """Sums over tokens of a projection's inputs h [in] and of the error e [out] that the model makes with all inputs
    present.

    `inputs` [in, in] = Σ h hᵀ, `cross` [out, in] = Σ e hᵀ, `input_sums` [in] = Σ h, `error_sums` [out] = Σ e. All are
    float32 on the inputs' device; `tokens` counts the summands.
    """

    inputs: Tensor
    cross: Tensor
    input_sums: Tensor
    error_sums: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, inner: int, out: int, device: torch.device | None = None) -> "Moments":
        """Return moments of no tokens for `inner` inputs and `out` outputs."""
        square, cross = torch.zeros(inner, inner, device=device), torch.zeros(out, inner, device=device)
        return cls(square, cross, torch.zeros(inner, device=device), torch.zeros(out, device=device))

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> "Moments":
        """Return the moments of all batches of (inputs [..., in], errors [..., out]); at least one is needed."""
        moments: Moments | None = None
        for inputs, errors in batches:
            moments = moments or cls.empty(inputs.shape[-1], errors.shape[-1], inputs.device)
            moments.add(inputs, errors)
        return cast("Moments", moments)

    def add(self, inputs: Tensor, errors: Tensor) -> None:
        """Add the inputs [..., in] and the errors [..., out] of the same tokens."""
        h, e = inputs.flatten(0, -2).float(), errors.flatten(0, -2).float()
        self.inputs += h.T @ h
        self.cross += e.T @ h
        self.input_sums += h.sum(0)
        self.error_sums += e.sum(0)
        self.tokens += len(h)


class Compensation:
    """The least-squares problem of a projection that loses inputs and compensates for an error that the model already
    makes.

    `target` [out, in] is the matrix that also reproduces the fraction `share` of the error; `inputs` [in, in] holds the
    damped second moments (centred where there is a bias). Both are float64 and lie where the moments do.

    `damping` is a ridge on each input, as a fraction of that input's own energy: 1 halves every measured correlation. A
    ridge relative to the mean energy does much worse in an MLP: a few hidden units fire massively, and their ridge
    would hide what the others have in common.
    """

    def __init__(self, moments: Moments, projection: nn.Module, share: float, damping: float) -> None:
        self._projection = projection
        self._bias = cast("Tensor | None", projection.bias)
        self._matrix = matrix_of(projection).detach().to(moments.inputs.device).double()
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
        """Return the fitted weight and bias of the projection, as stored, under `name`.weight and `name`.bias.

        `found` says which inputs stay and holds their refitted columns. There is a bias only where the projection has
        one.
        """
        tensors = {f"{name}.weight": _as_stored(self._projection, found.columns)}
        if self._bias is not None:
            mean = self._matrix @ self._input_mean + self._error_mean
            shift = mean - found.columns @ self._input_mean[found.kept]
            tensors[f"{name}.bias"] = (self._bias.to(shift) + shift).to(self._bias)
        return tensors


def rows_of(name: str, module: nn.Module, kept: Tensor) -> dict[str, Tensor]:
    """Return the weight and bias of a linear module with only the outputs `kept`, under `name`.weight and `name`.bias.

    `kept` [outputs that stay] indexes the rows of the matrix [out, in].
    """
    matrix, bias = matrix_of(module), cast("Tensor | None", module.bias)
    rows = kept.to(matrix.device)
    tensors = {f"{name}.weight": _as_stored(module, matrix[rows])}
    return tensors if bias is None else {**tensors, f"{name}.bias": bias[rows].clone()}


def _as_stored(module: nn.Module, matrix: Tensor) -> Tensor:
    """Return a matrix [out, in] in the orientation and dtype in which the module stores its weight."""
    weight = cast("Tensor", module.weight)
    return (matrix if isinstance(module, nn.Linear) else matrix.T).to(weight).contiguous()
