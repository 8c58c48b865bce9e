"""Structured pruning of a matrix's inputs: choose the inputs that can go once the others have compensated for them.

The optimal brain surgeon (Hassibi and Stork, 1993) for whole columns: with M = E[h hᵀ], removing column j of W costs
‖W_j‖² / (M⁻¹)_jj after all other columns have been refitted. Inputs go one by one, the cheapest first, and W and M⁻¹
are updated each time, so that of two inputs that can replace each other only one goes.

Removing a group of columns B together costs tr(W_B ((M⁻¹)_BB)⁻¹ W_Bᵀ).

`steps/narrow.py` chooses hidden units by the first, `steps/attention_groups.py` groups of heads by the second.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.math.degenerate import relative

REMOVED_AT_ONCE = 32
"""Columns that are removed between two updates of the whole inverse."""

CANDIDATES = 64
"""Number of cheapest columns among which the next ones are removed one by one, each with an exact update."""


@dataclass(frozen=True)
class Pruned:
    """The result of pruning: `kept` input indices, ascending; their refitted `columns` [out, kept]; and the `error`.

    `error` is the relative norm of the change of the output under the moments.
    """

    kept: Tensor
    columns: Tensor
    error: float


def prune(matrix: Tensor, moments: Tensor, size: int, outputs: Tensor | None = None) -> Pruned:
    """Keep the `size` inputs of a matrix [out, in] that reproduce its outputs best, and refit their columns.

    `moments` [in, in] is E[h hᵀ], positive definite, float64. `outputs` [out] weighs the outputs in the choice; the fit
    is best for each output whatever its weight. Raises ValueError unless 0 < `size` < in.
    """
    if not 0 < size < len(moments):
        raise ValueError(f"cannot keep {size} of {len(moments)} units: keep at least one and fewer than all")
    weighed = matrix if outputs is None else outputs.to(matrix)[:, None] * matrix
    kept = _survivors(weighed, torch.cholesky_inverse(torch.linalg.cholesky(moments)), size)
    return _refit(matrix, moments, kept)


def prune_groups(matrix: Tensor, moments: Tensor, width: int, count: int) -> Pruned:
    """Keep the `count` groups of `width` neighbouring inputs that reproduce the outputs of a matrix [out, in] best.

    `moments` [in, in] is E[h hᵀ], positive definite, float64. Raises ValueError unless 0 < `count` < number of groups,
    and where in is no multiple of `width`.
    """
    groups, rest = divmod(len(moments), width)
    if rest or not 0 < count < groups:
        raise ValueError(
            f"cannot keep {count} groups of {width} out of {len(moments)} inputs: keep whole groups, but not all"
        )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    columns, kept = matrix, torch.arange(len(moments), device=moments.device)
    while len(kept) > count * width:
        gone = _cheapest_group(columns, inverse, width)
        columns, inverse, left = _remove(columns, inverse, gone)
        kept = kept[left]
    return _refit(matrix, moments, kept)


def _refit(matrix: Tensor, moments: Tensor, kept: Tensor) -> Pruned:
    """Return the least-squares columns of the inputs `kept` for the outputs of `matrix`, and the error they leave."""
    columns = torch.linalg.solve(moments[kept][:, kept], (matrix @ moments[:, kept]).T).T
    lost = matrix.clone()
    lost[:, kept] -= columns
    return Pruned(kept, columns, math.sqrt(relative(_energy(lost, moments), _energy(matrix, moments))))


def _survivors(matrix: Tensor, inverse: Tensor, size: int) -> Tensor:
    """Return the `size` inputs that remain when the cheapest ones are removed in batches."""
    kept = torch.arange(len(inverse), device=inverse.device)
    while len(kept) > size:
        gone = _cheapest(matrix, inverse, min(REMOVED_AT_ONCE, len(kept) - size))
        matrix, inverse, rest = _remove(matrix, inverse, gone)
        kept = kept[rest]
    return kept


def _remove(matrix: Tensor, inverse: Tensor, gone: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return matrix and inverse of the remaining inputs after they have compensated for the inputs `gone`, and their
    indices."""
    remains = torch.ones(len(inverse), dtype=torch.bool, device=inverse.device).index_fill_(0, gone, False)
    # By index, since every selection by a mask makes the host wait.
    rest = remains.nonzero().flatten()
    taken_over = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, rest])
    return (
        matrix[:, rest] - matrix[:, gone] @ taken_over,
        inverse[rest][:, rest] - inverse[rest][:, gone] @ taken_over,
        rest,
    )


def _cheapest_group(matrix: Tensor, inverse: Tensor, width: int) -> Tensor:
    """Return the input indices of the group that is cheapest to remove."""
    count = len(inverse) // width
    blocks = inverse.reshape(count, width, count, width).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    columns = matrix.reshape(len(matrix), count, width).transpose(0, 1)
    costs: Tensor = ((columns @ torch.linalg.inv(blocks)) * columns).sum((1, 2))
    return costs.argmin() * width + torch.arange(width, device=inverse.device)


def _cheapest(matrix: Tensor, inverse: Tensor, count: int) -> Tensor:
    """Return the next `count` columns to remove, chosen one after the other from among the candidates."""
    costs = matrix.square().sum(0) / inverse.diagonal()
    candidates = torch.topk(costs, min(CANDIDATES, len(costs)), largest=False).indices
    columns, part = matrix[:, candidates], inverse[candidates][:, candidates]
    gone: list[Tensor] = []
    spent = torch.zeros_like(candidates, dtype=torch.bool)
    for _ in range(count):
        costs = (columns.square().sum(0) / part.diagonal()).masked_fill(spent, math.inf)
        # A tensor [1], so that the host need not know which column it is.
        chosen = costs.argmin(dim=0, keepdim=True)
        gone.append(chosen)
        spent.index_fill_(0, chosen, True)
        row = part.index_select(0, chosen).flatten()
        scaled = row / row.index_select(0, chosen)
        columns = columns - torch.outer(columns.index_select(1, chosen).flatten(), scaled)
        part = part - torch.outer(row, scaled)
        # The removed column is zero now; a pivot of one keeps its cost from being 0 / 0.
        part[chosen, chosen] = 1.0
    return candidates[torch.cat(gone)]


def _energy(matrix: Tensor, moments: Tensor) -> float:
    """Return tr(matrix · moments · matrixᵀ), the mean squared norm of the matrix's output."""
    return float(((matrix @ moments) * matrix).sum())
