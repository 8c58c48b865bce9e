"""Graft a removed block's weights onto other blocks: trainable during distillation, plain weights afterwards.

A receiver's matrix W_j is combined with the matrix W_f of the same name in the donor, as in FuseGPT (arXiv 2411.14507):

    W_j + B A + (C D) ⊙ W_f,     B [out, r], A [r, in], C [out, s], D [s, in]

B and C start at zero, so the receiver's output is unchanged at first. A bias becomes b_j + c ⊙ b_f with b_j and c
trained. The receiver's other vectors, such as norm weights, are trained directly. The sum is rounded to the receiver's
dtype where it is used.

Promise: `folded_tensors` returns plain tensors with the receiver's names, shapes and dtypes that compute the same.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class GraftRanks:
    """Ranks of the low-rank products of a graft; 0 leaves a product out.

    Attributes:
        coefficients: rank s of C D, which multiplies the donor's matrix element by element.
        correction: rank r of B A, which is added to the receiver's own matrix.
    """

    coefficients: int
    correction: int


def graft(
    receiver: nn.Module, donor: nn.Module, ranks: GraftRanks, *, dtype: torch.dtype = torch.float32, seed: int
) -> None:
    """Add trainable parameters to every tensor of a block, in place, as the module's formula says.

    Args:
        receiver: the block to train.
        donor: the removed block; its tensors have the receiver's names and shapes.
        ranks: ranks of the low-rank products.
        dtype: dtype of the trained parameters.
        seed: seed of the initial values of A and D.
    """
    generator = torch.Generator().manual_seed(seed)
    given = {name: parameter.detach() for name, parameter in donor.named_parameters()}
    for name, module in list(receiver.named_modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            theirs = given[f"{name}.{leaf}" if name else leaf]
            if parameter.ndim == 2:
                part: nn.Module = _GraftedMatrix(theirs, ranks, dtype, generator)
            else:
                part = _GraftedVector(theirs if leaf == "bias" and _is_projection(module) else None, parameter, dtype)
            # `unsafe` skips torch's check that dtypes stay equal: the trained parameters may be in float32.
            parametrize.register_parametrization(module, leaf, part, unsafe=True)


def trained_parameters(receiver: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) for each trained parameter of a grafted block."""
    return ((name, parameter) for name, parameter in receiver.named_parameters() if parameter.requires_grad)


def is_coefficient(name: str) -> bool:
    """Return whether the trained parameter `name` multiplies the donor's weights: C, D or c of the formula."""
    return ".coefficient" in name


@torch.no_grad()
def folded_tensors(receiver: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a grafted block with the graft multiplied out, by their names in the block."""
    return {
        f"{name}.{leaf}" if name else leaf: getattr(module, leaf).detach().clone()
        for name, module in receiver.named_modules()
        if parametrize.is_parametrized(module)
        for leaf in module.parametrizations
    }


class _GraftedMatrix(nn.Module):
    """Parametrization W_j + B A + (C D) ⊙ W_f of a matrix [rows, columns], stored as [out, in] or [in, out]."""

    def __init__(self, donor: Tensor, ranks: GraftRanks, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        self.donor = donor
        rows, columns = donor.shape
        self.coefficient_left = _zeros(rows, ranks.coefficients, dtype, donor.device)
        self.coefficient_right = _uniform(ranks.coefficients, columns, dtype, donor.device, generator)
        self.correction_left = _zeros(rows, ranks.correction, dtype, donor.device)
        self.correction_right = _uniform(ranks.correction, columns, dtype, donor.device, generator)

    def forward(self, weight: Tensor) -> Tensor:
        correction = self.correction_left @ self.correction_right
        taken = (self.coefficient_left @ self.coefficient_right) * self.donor
        return (weight.to(correction.dtype) + correction + taken).to(weight.dtype)


class _GraftedVector(nn.Module):
    """Parametrization of a vector: a trained copy, plus c ⊙ b_f if it is the bias of a matrix (`donor` given)."""

    def __init__(self, donor: Tensor | None, own: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.donor = donor
        self.trained = nn.Parameter(own.detach().to(dtype, copy=True))
        if donor is not None:
            self.coefficient = nn.Parameter(torch.zeros_like(self.trained))

    def forward(self, vector: Tensor) -> Tensor:
        whole = self.trained if self.donor is None else self.trained + self.coefficient * self.donor
        return whole.to(vector.dtype)


def _is_projection(module: nn.Module) -> bool:
    """Return whether the module has a weight matrix."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _zeros(rows: int, rank: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.zeros(rows, rank, dtype=dtype, device=device))


def _uniform(
    rank: int, columns: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> nn.Parameter:
    """Return a parameter [rank, columns] drawn uniformly from ±1/√columns: Kaiming initialisation with a = √5."""
    drawn = torch.rand(rank, columns, generator=generator)
    return nn.Parameter(((2 * drawn - 1) / math.sqrt(columns)).to(device, dtype))
