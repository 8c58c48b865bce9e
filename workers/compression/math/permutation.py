"""Search for row and column orders in which a matrix is nearly a sum of Kronecker products.

Let the rows of R be the flattened tiles of W. A sum of r terms keeps the energy of the r leading eigenvectors V of RᵀR
(Van Loan and Pitsianis, 1993). For a fixed V that energy is a sum over the groups of columns that share a tile. What a
swap of two columns gains therefore follows from inner products, and one product of two matrices holds them for every
swap. Swaps that touch different groups are independent
and are made together. Rows and columns take turns, and V is recomputed.

The search starts from the best of several orders. The caller names those besides the matrix's own: groups of similar
columns, as a shared factor leaves them, each ordered by norm (`grouped`); or strata, in which every tile holds one
column of each range of norms (`stratified`). Strata suit a matrix whose rows and columns have unequal weights: the
columns that matter least then stand at the same position of every tile, and what the sum leaves out falls on them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelpress.spec.structures import Kronecker

SWEEPS = 1
"""Upper bound of turns of columns and rows. On unstructured weights a second turn adds 0.3 % of the energy."""

ROUNDS = 4
"""Batches of swaps on one side before the other side's turn."""

LEAST_GAIN = 1e-6
"""Least gain of a swap, as a fraction of the mean energy of a column, so that rounding alone moves nothing."""

TOLERANCE = 1e-3
"""Gain per sweep, as a fraction of the matrix's energy, below which the search stops."""

LARGEST_REORDERED = 4
"""Groups up to this size are tried in every order of their members, 4! at most."""

NEIGHBOURS = 4
"""Candidates per position in a group that `grouped` considers for each column."""


Arrangement = Callable[[Tensor, int], Tensor]
"""A function that takes a matrix [m, n] and a size and returns an order of its columns [n] in groups of that size."""


@dataclass(frozen=True)
class Permutation:
    """The rows [out] and columns [in] of W in the order of the Kronecker sum.

    `energy` is the fraction of ‖W‖² that the sum then keeps.
    """

    rows: Tensor
    columns: Tensor
    energy: float


def search(weight: Tensor, structure: Kronecker, arrangements: Sequence[Arrangement]) -> Permutation:
    """Return the row and column orders of W [out, in] that keep the most energy in the structure's tiles, as far as
    found.

    A side that may not be permuted keeps its order. `arrangements` propose orders to start from, in addition to the
    matrix's own.
    """
    matrix = weight.detach().float()
    total = matrix.square().sum().item()
    (_, m2), (_, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    own_rows, own_columns = (torch.arange(size, device=matrix.device) for size in matrix.shape)
    starts = [Permutation(own_rows, own_columns, kept_energy(matrix, m2, n2, terms) / total)]
    for arrange in arrangements:
        rows = arrange(matrix.T, m2) if structure.permute_out else own_rows
        columns = arrange(matrix, n2) if structure.permute_in else own_columns
        starts.append(Permutation(rows, columns, kept_energy(matrix[rows][:, columns], m2, n2, terms) / total))
    return _hill_climb(matrix, structure, max(starts, key=lambda each: each.energy), total)


def kept_energy(matrix: Tensor, tile_rows: int, tile_columns: int, terms: int) -> float:
    """Return the squared norm of the best sum of `terms` Kronecker products for the matrix [m, n] in its own order.

    `tile_rows` × `tile_columns` is the size of the right factors.
    """
    return float(torch.linalg.eigvalsh(_tile_gram(matrix, tile_rows, tile_columns))[-terms:].sum())


def grouped(matrix: Tensor, size: int) -> Tensor:
    """Return an order [n] of the columns of a matrix [m, n] with the most similar ones together in groups of `size`."""
    columns = matrix.shape[1]
    if size == 1 or size == columns:
        return torch.arange(columns, device=matrix.device)
    norms = matrix.norm(dim=0).clamp_min(1e-30)
    resemblance = ((matrix.T @ matrix) / norms / norms[:, None]).abs().fill_diagonal_(0)
    closeness, candidates = resemblance.topk(min(NEIGHBOURS * size, columns - 1), dim=1)
    groups = _merge_groups(closeness, candidates, size)
    return torch.cat([group[norms[group].argsort(descending=True)] for group in groups])


def stratified(matrix: Tensor, size: int) -> Tensor:
    """Return an order [n] of the columns of a matrix [m, n] in groups of `size`, each with one column of every range of
    norms.

    Columns of the largest norms stand first in their groups, columns of the smallest norms last.
    """
    by_norm = matrix.square().sum(0).argsort(descending=True, stable=True)
    return by_norm.view(size, -1).T.flatten()


def _merge_groups(closeness: Tensor, candidates: Tensor, size: int) -> Tensor:
    """Merge the closest columns first, while no group outgrows `size`, and fill up the remainders in order.

    Return the column indices of the groups, [groups, size].
    """
    group_of = list(range(len(candidates)))
    members = {index: [index] for index in group_of}
    width = candidates.shape[1]
    flat = candidates.flatten().tolist()
    for pair in closeness.flatten().argsort(descending=True).tolist():
        one, other = group_of[pair // width], group_of[flat[pair]]
        if one != other and len(members[one]) + len(members[other]) <= size:
            for index in members[other]:
                group_of[index] = one
            members[one] += members.pop(other)
    full = [index for group in members.values() if len(group) == size for index in group]
    rest = [index for group in members.values() if len(group) < size for index in group]
    return torch.tensor(full + rest).view(-1, size).to(candidates.device)


def _hill_climb(matrix: Tensor, structure: Kronecker, start: Permutation, total: float) -> Permutation:
    """Return the best orders that alternating rounds of swaps reach from `start`; `total` is ‖W‖²."""
    (_, m2), (_, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    best, rows, columns = start, start.rows, start.columns
    for _ in range(SWEEPS):
        if structure.permute_in and n2 > 1:
            columns = _improve_columns(matrix[rows], columns, m2, n2, terms)
        if structure.permute_out and m2 > 1:
            rows = _improve_columns(matrix[:, columns].T.contiguous(), rows, n2, m2, terms)
        found = Permutation(rows, columns, kept_energy(matrix[rows][:, columns], m2, n2, terms) / total)
        gained, best = found.energy - best.energy, max(best, found, key=lambda each: each.energy)
        if gained < TOLERANCE:
            break
    return best


def _improve_columns(matrix: Tensor, order: Tensor, tile_rows: int, tile_columns: int, terms: int) -> Tensor:
    """Return a better order of the columns; the rows of `matrix` are already in their order."""
    for _ in range(ROUNDS):
        products = _group_products(matrix[:, order], tile_rows, tile_columns)
        basis: Tensor = torch.linalg.eigh(products.double().sum(0)).eigenvectors[:, -terms:]
        leading = basis.float().view(tile_rows, tile_columns, terms)
        order = _reorder_groups(products, order, leading)
        swapped = _best_swaps(_energies_by_position(matrix[:, order], leading), tile_columns)
        if torch.equal(swapped, torch.arange(len(order), device=order.device)):
            break
        order = order[swapped]
    return order


def _tile_gram(matrix: Tensor, tile_rows: int, tile_columns: int) -> Tensor:
    """Return RᵀR in float64, [tile_rows · tile_columns, tile_rows · tile_columns]."""
    return _group_products(matrix, tile_rows, tile_columns).double().sum(0)


def _group_products(matrix: Tensor, tile_rows: int, tile_columns: int) -> Tensor:
    """Return each column group's summand of RᵀR, [groups, tile_rows · tile_columns, tile_rows · tile_columns]."""
    tiles = _tiles(matrix, tile_rows, tile_columns).permute(2, 0, 1, 3).flatten(2)
    return tiles.transpose(1, 2) @ tiles


def _tiles(matrix: Tensor, tile_rows: int, tile_columns: int) -> Tensor:
    """Return the matrix viewed as [tiles down, tile_rows, groups of columns, tile_columns]."""
    return matrix.reshape(matrix.shape[0] // tile_rows, tile_rows, -1, tile_columns)


def _reorder_groups(products: Tensor, order: Tensor, leading: Tensor) -> Tensor:
    """Return the order with the members of each group in their best order; `leading` [tile_rows, tile_columns, terms]
    is V."""
    tile_rows, size, _ = leading.shape
    if size > LARGEST_REORDERED:
        return order
    inner = products.view(-1, tile_rows, size, tile_rows, size)
    # worth[g, p, q, a, b]: energy from the product of members a and b at the positions p and q of group g.
    worth = torch.einsum("ipk,jqk,giajb->gpqab", leading, leading, inner)
    orders = torch.tensor(list(itertools.permutations(range(size)))).to(products.device)
    places = torch.arange(size, device=products.device)
    energies = torch.stack(
        [worth[:, places[:, None], places, each[:, None], each].sum((1, 2)) for each in orders], dim=1
    )
    return order.view(-1, size).gather(1, orders[energies.argmax(1)]).flatten()


def _energies_by_position(placed: Tensor, leading: Tensor) -> Tensor:
    """Return [column, position]: the energy that each column would contribute at each position while all others stay.

    A group keeps ‖Σ_q Vᵀ_q x_q‖² of its members x_q. A newcomer contributes its own square, and twice its product with
    the sum over the group's other members.
    """
    tile_rows, size, _ = leading.shape
    shares = torch.einsum("aigq,iqk->qkag", _tiles(placed, tile_rows, size), leading)
    others = shares.sum(0) - shares
    wanted = torch.einsum("qkag,iqk->aigq", others, leading).reshape(placed.shape)
    columns = _tiles(placed, tile_rows, 1).squeeze(-1)
    squares = torch.einsum("aic,ajc->cij", columns, columns)
    alone = torch.einsum("cij,iqk,jqk->cq", squares, leading, leading)
    return torch.addmm(alone.repeat(1, placed.shape[1] // size), placed.T, wanted, alpha=2)


def _best_swaps(worth: Tensor, size: int) -> Tensor:
    """Return the order of the positions after the best swaps between groups; no group takes part in two swaps."""
    present = worth.diagonal().clone()
    gain = (worth + worth.T).sub_(present).sub_(present[:, None])
    groups = len(worth) // size
    gain.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).zero_()
    gains, partners = gain.max(1)
    promising = torch.nonzero(gains > LEAST_GAIN * present.abs().mean()).flatten()
    promising = promising[gains[promising].argsort(descending=True)]
    order, touched = list(range(len(worth))), set[int]()
    for place, partner in zip(promising.tolist(), partners[promising].tolist(), strict=True):
        if touched.isdisjoint((place // size, partner // size)):
            touched.update((place // size, partner // size))
            order[place], order[partner] = partner, place
    return torch.tensor(order).to(worth.device)
