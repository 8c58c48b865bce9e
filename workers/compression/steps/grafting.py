"""A removed block's weights within its neighbours: trainable during their distillation, plain weights afterwards.

A receiver's matrix W_j takes up the matrix W_f of the same name in the donor, as FuseGPT does (arXiv 2411.14507):

    W_j + B A + (C D) ⊙ W_f,     B [out, r], A [r, in], C [out, s], D [s, in]

with B and C zero at the start, so that nothing changes at first. A bias becomes b_j + c ⊙ b_f with b_j and c trained;
a receiver's other vectors, such as the weights of its norms, are trained directly. The sum is rounded to the
receiver's dtype where it is used.

Promise: `folded` returns plain tensors of the receiver's names, shapes and dtypes, which compute the same.
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
    """Make a block trainable, in place, together with what it takes up of the donor, a block of the same shapes.

    Args:
        dtype: dtype of everything trained.
        seed: decides the initial values of A and D.
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
            # Unsafe only in that the check for equal dtypes is left out.
            parametrize.register_parametrization(module, leaf, part, unsafe=True)


def trained(receiver: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trained parameters of a grafted block with their names."""
    return ((name, parameter) for name, parameter in receiver.named_parameters() if parameter.requires_grad)


def is_coefficient(name: str) -> bool:
    """Whether the trained parameter of this name multiplies the donor's weights."""
    return ".coefficient" in name


@torch.no_grad()
def folded(receiver: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a grafted block with everything it took up, by their names in the block."""
    return {
        f"{name}.{leaf}" if name else leaf: getattr(module, leaf).detach().clone()
        for name, module in receiver.named_modules()
        if parametrize.is_parametrized(module)
        for leaf in module.parametrizations
    }


class _GraftedMatrix(nn.Module):
    """W_j + B A + (C D) ⊙ W_f, whichever way round the matrices are stored."""

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
    """A trained copy of a vector, plus c ⊙ b_f where it is the bias of a matrix."""

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
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _zeros(rows: int, rank: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.zeros(rows, rank, dtype=dtype, device=device))


def _uniform(
    rank: int, columns: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> nn.Parameter:
    """Return [rank, columns] drawn evenly from ± 1/√columns: Kaiming's uniform initialisation with a = √5."""
    drawn = torch.rand(rank, columns, generator=generator)
    return nn.Parameter(((2 * drawn - 1) / math.sqrt(columns)).to(device, dtype))
