"""Which inputs of a matrix can be done without, once the others have made up for them.

The optimal brain surgeon (Hassibi and Stork, 1993) for whole columns: with M = E[h hᵀ] the error of losing column j of
W is ‖W_j‖² / (M⁻¹)_jj after all other columns have been refitted. Inputs go one by one, the cheapest first, and W and
M⁻¹ are updated each time, so that of two that can replace each other only one goes.

For a group of columns B that only go together, the same error is tr(W_B ((M⁻¹)_BB)⁻¹ W_Bᵀ).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.math.degenerate import relative

REMOVED_AT_ONCE = 32
"""Columns that are removed between two updates of the whole inverse."""

CANDIDATES = 64
"""The cheapest columns, among which the next ones are removed one by one, each with an exact update."""


@dataclass(frozen=True)
class Pruned:
    """`kept` inputs, ascending; `columns` [out, kept], refitted; `error` of the output, relative, under the moments."""

    kept: Tensor
    columns: Tensor
    error: float


def prune(matrix: Tensor, moments: Tensor, size: int, outputs: Tensor | None = None) -> Pruned:
    """The `size` inputs of the matrix [out, in] that give its outputs best, and the columns that do it.

    `moments` [in, in] is E[h hᵀ], positive definite, float64; `outputs` [out] weighs the outputs in the choice, while
    the fit is the best for each output whatever their weights. Raises ValueError where there are not more inputs than
    `size`.
    """
    if not 0 < size < len(moments):
        raise ValueError(f"of {len(moments)} units {size} cannot be kept")
    weighed = matrix if outputs is None else outputs.to(matrix)[:, None] * matrix
    kept = _survivors(weighed, torch.cholesky_inverse(torch.linalg.cholesky(moments)), size)
    return _refitted(matrix, moments, kept)


def prune_groups(matrix: Tensor, moments: Tensor, width: int, count: int) -> Pruned:
    """The same for inputs of which `width` neighbours only go or stay together: the `count` such groups that give the
    outputs best.

    Raises ValueError where there are not more groups than `count`, or the inputs are no whole number of groups.
    """
    groups, rest = divmod(len(moments), width)
    if rest or not 0 < count < groups:
        raise ValueError(f"of {len(moments)} inputs in groups of {width}, {count} groups cannot be kept")
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    columns, kept = matrix, torch.arange(len(moments))
    while len(kept) > count * width:
        gone = _cheapest_group(columns, inverse, width)
        columns, inverse, left = _without(columns, inverse, gone)
        kept = kept[left]
    return _refitted(matrix, moments, kept)


def _refitted(matrix: Tensor, moments: Tensor, kept: Tensor) -> Pruned:
    columns = torch.linalg.solve(moments[kept][:, kept], (matrix @ moments[:, kept]).T).T
    lost = matrix.clone()
    lost[:, kept] -= columns
    return Pruned(kept, columns, math.sqrt(relative(_energy(lost, moments), _energy(matrix, moments))))


def _survivors(matrix: Tensor, inverse: Tensor, size: int) -> Tensor:
    kept = torch.arange(len(inverse))
    while len(kept) > size:
        gone = _cheapest(matrix, inverse, min(REMOVED_AT_ONCE, len(kept) - size))
        matrix, inverse, rest = _without(matrix, inverse, gone)
        kept = kept[rest]
    return kept


def _without(matrix: Tensor, inverse: Tensor, gone: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix and inverse of the inputs that are left once the others have made up for those gone, and which they
    are."""
    rest = torch.ones(len(inverse), dtype=torch.bool)
    rest[gone] = False
    taken_over = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, rest])
    return (
        matrix[:, rest] - matrix[:, gone] @ taken_over,
        inverse[rest][:, rest] - inverse[rest][:, gone] @ taken_over,
        rest,
    )


def _cheapest_group(matrix: Tensor, inverse: Tensor, width: int) -> Tensor:
    """The inputs of the group whose loss costs least."""
    groups = torch.split(torch.arange(len(inverse)), width)
    costs = [_energy(matrix[:, group], torch.linalg.inv(inverse[group][:, group])) for group in groups]
    return groups[costs.index(min(costs))]


def _cheapest(matrix: Tensor, inverse: Tensor, count: int) -> Tensor:
    """The next `count` columns to go, one after the other, from among the candidates."""
    costs = matrix.square().sum(0) / inverse.diagonal()
    candidates = torch.topk(costs, min(CANDIDATES, len(costs)), largest=False).indices
    columns, part = matrix[:, candidates], inverse[candidates][:, candidates]
    gone: list[int] = []
    for _ in range(count):
        costs = columns.square().sum(0) / part.diagonal()
        costs[gone] = math.inf
        chosen = int(costs.argmin())
        gone.append(chosen)
        row, pivot = part[chosen].clone(), part[chosen, chosen].clone()
        columns = columns - torch.outer(columns[:, chosen], row / pivot)
        part = part - torch.outer(row, row / pivot)
        # Nothing is left of the removed column; the one keeps its cost from being 0 / 0.
        part[chosen, chosen] = 1.0
    return candidates[gone]


def _energy(matrix: Tensor, moments: Tensor) -> float:
    return float(((matrix @ moments) * matrix).sum())
