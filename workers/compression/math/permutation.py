"""The search for the row and column orders in which a matrix is most nearly a sum of Kronecker products.

With the tiles of W flattened into the rows of R, a sum of r terms keeps the energy of the r leading eigenvectors V of
RᵀR (Van Loan and Pitsianis, 1993). For a fixed V the energy is a sum over groups of columns that share a tile, so one
product of two matrices tells what every swap of two columns would gain. Swaps that touch different groups do not
disturb each other and are made together; rows take turns with columns, and V follows.

The search starts from the best of several orders: the matrix's own; groups of columns that resemble each other, as a
shared factor leaves them, each ordered by norm (`grouped`); or strata, in which every tile holds one column of each
range of norms (`stratified`). Strata suit a matrix whose rows and columns weigh unequally: what weighs little then
stands in the same place of every tile, where the terms that are left out would have held it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.spec.structures import Kronecker

SWEEPS = 1
"""Turns of columns and rows at most. On unstructured weights a second one adds three thousandths of the energy."""

ROUNDS = 4
"""Batches of swaps on one side before the other side's turn."""

LEAST_GAIN = 1e-6
"""What a swap must gain, as part of the mean energy of a column, so that rounding alone moves nothing."""

TOLERANCE = 1e-3
"""Part of the matrix's energy."""

LARGEST_REORDERED = 4
"""Groups up to this size are tried in every order of their members, 4! at most."""

NEIGHBOURS = 4
"""How many candidates per place in a group the start considers for each column."""


Arrangement = Callable[[Tensor, int], Tensor]
"""From a matrix and a size to an order of its columns, in which groups of that size stand together."""


@dataclass(frozen=True)
class Permutation:
    """`rows` [out] and `columns` [in] list W's rows and columns in the order of the Kronecker sum; `energy` is the
    part of ‖W‖² that the sum then keeps."""

    rows: Tensor
    columns: Tensor
    energy: float


def search(weight: Tensor, structure: Kronecker, arrangements: Sequence[Arrangement] | None = None) -> Permutation:
    """Return the orders found for W [out, in] and tiles of the structure, which keep the most energy of W.

    A side that may not be permuted keeps its order. `arrangements` propose the orders to start from, beside the
    matrix's own; None stands for `grouped` alone.
    """
    matrix = weight.detach().float()
    total = matrix.square().sum().item()
    (_, m2), (_, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    own_rows, own_columns = torch.arange(matrix.shape[0]), torch.arange(matrix.shape[1])
    starts = [Permutation(own_rows, own_columns, kept_energy(matrix, m2, n2, terms) / total)]
    for arrange in (grouped,) if arrangements is None else arrangements:
        rows = arrange(matrix.T, m2) if structure.permute_out else own_rows
        columns = arrange(matrix, n2) if structure.permute_in else own_columns
        starts.append(Permutation(rows, columns, kept_energy(matrix[rows][:, columns], m2, n2, terms) / total))
    return _climbed(matrix, structure, max(starts, key=lambda each: each.energy), total)


def kept_energy(matrix: Tensor, tile_rows: int, tile_columns: int, terms: int) -> float:
    """‖·‖² of the best sum of `terms` Kronecker products with tiles of the given size, in the matrix's own order."""
    return float(torch.linalg.eigvalsh(_tile_gram(matrix, tile_rows, tile_columns))[-terms:].sum())


def grouped(matrix: Tensor, size: int) -> Tensor:
    """Return an order of the columns in which those that resemble each other most stand together in groups of
    `size`."""
    columns = matrix.shape[1]
    if size == 1 or size == columns:
        return torch.arange(columns)
    norms = matrix.norm(dim=0).clamp_min(1e-30)
    resemblance = ((matrix.T @ matrix) / norms / norms[:, None]).abs().fill_diagonal_(0)
    closeness, candidates = resemblance.topk(min(NEIGHBOURS * size, columns - 1), dim=1)
    groups = _merged(closeness, candidates, size)
    return torch.cat([group[norms[group].argsort(descending=True)] for group in groups])


def stratified(matrix: Tensor, size: int) -> Tensor:
    """Return an order of the columns in groups of `size`, each of which holds one column of every range of norms.

    The columns of the greatest norms stand first in their groups, those of the least norms last.
    """
    by_norm = matrix.square().sum(0).argsort(descending=True, stable=True)
    return by_norm.view(size, -1).T.flatten()


def _merged(closeness: Tensor, candidates: Tensor, size: int) -> Tensor:
    """Merges the closest first, as long as no group outgrows `size`; the remainders are filled up in order."""
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
    return torch.tensor(full + rest).view(-1, size)


def _climbed(matrix: Tensor, structure: Kronecker, start: Permutation, total: float) -> Permutation:
    (_, m2), (_, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    best, rows, columns = start, start.rows, start.columns
    for _ in range(SWEEPS):
        if structure.permute_in and n2 > 1:
            columns = _improved(matrix[rows], columns, m2, n2, terms)
        if structure.permute_out and m2 > 1:
            rows = _improved(matrix[:, columns].T.contiguous(), rows, n2, m2, terms)
        found = Permutation(rows, columns, kept_energy(matrix[rows][:, columns], m2, n2, terms) / total)
        gained, best = found.energy - best.energy, max(best, found, key=lambda each: each.energy)
        if gained < TOLERANCE:
            break
    return best


def _improved(matrix: Tensor, order: Tensor, tile_rows: int, tile_columns: int, terms: int) -> Tensor:
    """A better order of the columns of a matrix whose rows stand in their places."""
    for _ in range(ROUNDS):
        products = _group_products(matrix[:, order], tile_rows, tile_columns)
        basis: Tensor = torch.linalg.eigh(products.double().sum(0)).eigenvectors[:, -terms:]
        leading = basis.float().view(tile_rows, tile_columns, terms)
        order = _reordered_groups(products, order, leading)
        swapped = _swapped(_worth(matrix[:, order], leading), tile_columns)
        if torch.equal(swapped, torch.arange(len(order))):
            break
        order = order[swapped]
    return order


def _tile_gram(matrix: Tensor, tile_rows: int, tile_columns: int) -> Tensor:
    """RᵀR in float64, of as many rows as a tile has entries."""
    return _group_products(matrix, tile_rows, tile_columns).double().sum(0)


def _group_products(matrix: Tensor, tile_rows: int, tile_columns: int) -> Tensor:
    """The share of each group of columns in RᵀR, [groups, tile_rows · tile_columns, the same]."""
    tiles = _tiles(matrix, tile_rows, tile_columns).permute(2, 0, 1, 3).flatten(2)
    return tiles.transpose(1, 2) @ tiles


def _tiles(matrix: Tensor, tile_rows: int, tile_columns: int) -> Tensor:
    """[tiles down, tile_rows, groups of columns, tile_columns]."""
    return matrix.reshape(matrix.shape[0] // tile_rows, tile_rows, -1, tile_columns)


def _reordered_groups(products: Tensor, order: Tensor, leading: Tensor) -> Tensor:
    """Puts the members of each group in their best order; `leading` [tile_rows, tile_columns, terms] is V."""
    tile_rows, size, _ = leading.shape
    if size > LARGEST_REORDERED:
        return order
    inner = products.view(-1, tile_rows, size, tile_rows, size)
    # worth[g, p, q, a, b]: what the product of members a, b contributes if they take the places p, q of group g.
    worth = torch.einsum("ipk,jqk,giajb->gpqab", leading, leading, inner)
    orders = torch.tensor(list(itertools.permutations(range(size))))
    places = torch.arange(size)
    energies = torch.stack(
        [worth[:, places[:, None], places, each[:, None], each].sum((1, 2)) for each in orders], dim=1
    )
    return order.view(-1, size).gather(1, orders[energies.argmax(1)]).flatten()


def _worth(placed: Tensor, leading: Tensor) -> Tensor:
    """[column, place]: the energy that the column of each place would bring to each place, all others staying.

    A group keeps ‖Σ_q Vᵀ_q x_q‖² of its members x_q. A newcomer brings its own square, and twice its product with what
    the other members of the group sum up to.
    """
    tile_rows, size, _ = leading.shape
    shares = torch.einsum("aigq,iqk->qkag", _tiles(placed, tile_rows, size), leading)
    others = shares.sum(0) - shares
    wanted = torch.einsum("qkag,iqk->aigq", others, leading).reshape(placed.shape)
    columns = _tiles(placed, tile_rows, 1).squeeze(-1)
    squares = torch.einsum("aic,ajc->cij", columns, columns)
    alone = torch.einsum("cij,iqk,jqk->cq", squares, leading, leading)
    return torch.addmm(alone.repeat(1, placed.shape[1] // size), placed.T, wanted, alpha=2)


def _swapped(worth: Tensor, size: int) -> Tensor:
    """The order of the places after the best swaps between groups, no group in two of them."""
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
    return torch.tensor(order)
