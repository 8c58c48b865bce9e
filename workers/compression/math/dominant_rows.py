"""Rows of a tall matrix from which its other rows are mixed with small coefficients."""

import torch
from torch import Tensor

PIVOT_BOUND = 1.05
"""Rows are exchanged until no entry of the mixing matrix exceeds this bound: its rounding then does as little harm as
that of an ordinary weight."""

LARGEST_MIXING = 1e3
"""An entry of the mixing matrix beyond this is that of columns which depend on one another but for rounding."""

NULL = 1e-12
"""Singular values below this part of the largest one are rounding."""

EXCHANGES = 2
"""Upper bound of row exchanges per pivot. Each exchange enlarges the pivots' volume; only rounding could make them
cycle."""


def dominant_rows(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices S of r dominant rows of a factor [m, r], the indices of the others, and the mixing matrix [m − r,
    r].

    It holds that factor[others] = mixing · factor[S], and no entry of `mixing` exceeds PIVOT_BOUND in magnitude, up to
    the limit on exchanges (EXCHANGES).
    """
    rank = factor.shape[1]
    packed, exchanges, zero_pivot = torch.linalg.lu_factor_ex(factor)
    if zero_pivot:
        return _dominant_rows_of_fewer(factor)
    order = _row_order(len(factor), exchanges).to(factor.device)
    mixing = torch.linalg.solve_triangular(packed[:rank], packed[rank:], upper=False, left=False, unitriangular=True)
    del packed
    pivots, others = order[:rank].clone(), order[rank:].clone()
    for _ in range(EXCHANGES * rank if mixing.numel() else 0):
        largest, place = mixing.abs().flatten().max(0)
        # Both in one copy: each makes the host wait.
        magnitude, at = torch.stack((largest.double(), place.double())).tolist()
        if magnitude <= PIVOT_BOUND:
            break
        row, column = divmod(int(at), rank)
        pivots[column], others[row] = others[row].clone(), pivots[column].clone()
        _exchange(mixing, row, column)
    # Solve again: the exchanges have accumulated rounding errors.
    mixing, singular = torch.linalg.solve_ex(factor[pivots], factor[others], left=False)
    if singular or not bool((mixing.abs() <= LARGEST_MIXING).all()):
        return _dominant_rows_of_fewer(factor)
    return pivots, others, mixing


def _dominant_rows_of_fewer(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `dominant_rows` returns, for a factor [m, r] whose columns depend on one another.

    The rows are found in an orthonormal basis of the space that the columns span; rows that nothing is mixed from make
    up their number.
    """
    count, rank = factor.shape
    left, values, _ = torch.linalg.svd(factor, full_matrices=False)
    independent = int((values > NULL * values[0]).sum()) if values[0] > 0 else 0
    pivots, others = (torch.arange(size, device=factor.device) for size in (0, count))
    mixing = factor.new_zeros(count, 0)
    if independent:
        pivots, others, mixing = dominant_rows(left[:, :independent])
    spare = rank - independent
    return (
        torch.cat((pivots, others[:spare])),
        others[spare:],
        torch.cat((mixing[spare:], mixing.new_zeros(len(mixing) - spare, spare)), dim=1),
    )


def _row_order(count: int, exchanges: Tensor) -> Tensor:
    """Return the row order that LAPACK's exchanges leave: at each step the row swaps with the one named, counted from
    1."""
    order = list(range(count))
    for step, other in enumerate(exchanges.tolist()):
        order[step], order[other - 1] = order[other - 1], order[step]
    return torch.tensor(order)


def _exchange(mixing: Tensor, row: int, column: int) -> None:
    """Update the mixing matrix in place after a pivot and another row changed places: one step of Gauss-Jordan
    elimination."""
    value = mixing[row, column].clone()
    scaled = mixing[row] / value
    scaled[column] = 0
    leaving = mixing[:, column].clone()
    mixing.addr_(leaving, scaled, alpha=-1)
    mixing[:, column] = leaving / value
    mixing[row] = -scaled
    mixing[row, column] = 1 / value


def inverse_order(order: Tensor) -> Tensor:
    """Return the inverse of a permutation given as an index vector [n]."""
    return torch.empty_like(order).index_copy_(0, order, torch.arange(order.numel(), device=order.device))
