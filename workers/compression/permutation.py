"""The search for the row and column orders in which a matrix is most nearly a sum of Kronecker products.

With the tiles of W flattened into the rows of R, a sum of r terms keeps the energy of the r leading eigenvectors V of
RᵀR (Van Loan and Pitsianis). For a fixed V the energy is a sum over groups of columns that share a tile, so what
every swap of two columns would gain follows from Gram matrices of the columns alone. Swaps that touch different
groups do not disturb each other and are made together; rows take turns with columns, and V follows.

The start groups columns by the correlation that a shared factor leaves between them, and orders each group by norm.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.accounting import Kronecker

SWEEPS = 1
"""Turns of columns and rows at most. On unstructured weights a second one adds a hundredth of the energy."""

ROUNDS = 2
"""Batches of swaps on one side before the other side's turn."""

TOLERANCE = 1e-3
"""Part of the matrix's energy."""

LARGEST_REORDERED = 4
"""Groups up to this size are tried in every order of their members, 4! at most."""

NEIGHBOURS = 4
"""How many candidates per place in a group the start considers for each column."""


@dataclass(frozen=True)
class Permutation:
    """`rows` [out] and `columns` [in] list W's rows and columns in the order of the Kronecker sum; `energy` is the
    part of ‖W‖² that the sum then keeps."""

    rows: Tensor
    columns: Tensor
    energy: float


def search(weight: Tensor, structure: Kronecker) -> Permutation:
    """The orders found for W [out, in] and tiles of the structure; a side that may not be permuted keeps its order."""
    matrix = weight.detach().float()
    total = matrix.square().sum().item()
    (_, m2), (_, n2), terms = structure.out_shape, structure.in_shape, structure.terms
    rows = grouped(matrix.T, m2) if structure.permute_out else torch.arange(matrix.shape[0])
    columns = grouped(matrix, n2) if structure.permute_in else torch.arange(matrix.shape[1])
    unmoved = torch.arange(matrix.shape[0]), torch.arange(matrix.shape[1])
    plain = Permutation(*unmoved, kept_energy(matrix, m2, n2, terms) / total)
    found = Permutation(rows, columns, kept_energy(matrix[rows][:, columns], m2, n2, terms) / total)
    return _climbed(matrix, structure, max(plain, found, key=lambda each: each.energy), total)


def kept_energy(matrix: Tensor, tile_rows: int, tile_columns: int, terms: int) -> float:
    """‖·‖² of the best sum of `terms` Kronecker products with tiles of the given size, in the matrix's own order."""
    return float(torch.linalg.eigvalsh(_tile_gram(matrix, tile_rows, tile_columns))[-terms:].sum())


def grouped(matrix: Tensor, size: int) -> Tensor:
    """An order of the columns in which those that resemble each other most stand together in groups of `size`."""
    columns = matrix.shape[1]
    if size == 1 or size == columns:
        return torch.arange(columns)
    norms = matrix.norm(dim=0).clamp_min(1e-30)
    resemblance = ((matrix.T @ matrix) / norms / norms[:, None]).abs().fill_diagonal_(0)
    closeness, candidates = resemblance.topk(min(NEIGHBOURS * size, columns - 1), dim=1)
    groups = _merged(closeness, candidates, size)
    return torch.cat([group[norms[group].argsort(descending=True)] for group in groups])


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
    rows, columns, energy = start.rows, start.columns, start.energy
    for _ in range(SWEEPS):
        if structure.permute_in and n2 > 1:
            columns = _improved(matrix[rows], columns, m2, n2, terms)
        if structure.permute_out and m2 > 1:
            rows = _improved(matrix[:, columns].T, rows, n2, m2, terms)
        reached = kept_energy(matrix[rows][:, columns], m2, n2, terms) / total
        if reached - energy < TOLERANCE:
            return Permutation(rows, columns, max(reached, energy))
        energy = reached
    return Permutation(rows, columns, energy)


def _improved(matrix: Tensor, order: Tensor, tile_rows: int, tile_columns: int, terms: int) -> Tensor:
    """A better order of the columns of a matrix whose rows stand in their places."""
    products = _column_products(matrix, tile_rows)
    for _ in range(ROUNDS):
        leading: Tensor = torch.linalg.eigh(_tile_gram(matrix[:, order], tile_rows, tile_columns)).eigenvectors[
            :, -terms:
        ]
        leading = leading.view(tile_rows, tile_columns, terms)
        # projector[p, q, i, j]: what the product of rows i, j of columns in the places p, q of a group contributes.
        projector = torch.einsum("ipk,jqk->pqij", leading, leading).float()
        order = _reordered_groups(products, order, projector)
        order, swaps = _swapped(products, order, projector)
        if not swaps:
            break
    return order


def _tile_gram(matrix: Tensor, tile_rows: int, tile_columns: int) -> Tensor:
    """RᵀR in float64, of as many rows as a tile has entries."""
    rows, columns = matrix.shape
    tiles = matrix.reshape(rows // tile_rows, tile_rows, columns // tile_columns, tile_columns)
    flat = tiles.transpose(1, 2).reshape(-1, tile_rows * tile_columns)
    return (flat.T @ flat).double()


def _column_products(matrix: Tensor, tile_rows: int) -> Tensor:
    """[tile_rows, tile_rows, columns, columns]: the products of all columns over rows i and rows j of the tiles."""
    sliced = matrix.reshape(-1, tile_rows, matrix.shape[1]).transpose(0, 1)
    return sliced.transpose(1, 2).unsqueeze(1) @ sliced.unsqueeze(0)


def _reordered_groups(products: Tensor, order: Tensor, projector: Tensor) -> Tensor:
    """Puts the members of each group in their best order."""
    size = projector.shape[0]
    if size > LARGEST_REORDERED:
        return order
    groups = order.view(-1, size)
    inner = products[:, :, groups[:, :, None], groups[:, None, :]]
    worth = torch.einsum("pqij,ijgab->gpqab", projector, inner)
    orders = torch.tensor(list(itertools.permutations(range(size))))
    places = torch.arange(size)
    energies = torch.stack(
        [worth[:, places[:, None], places, each[:, None], each].sum((1, 2)) for each in orders], dim=1
    )
    return groups.gather(1, orders[energies.argmax(1)]).flatten()


def _swapped(products: Tensor, order: Tensor, projector: Tensor) -> tuple[Tensor, int]:
    """The order after the best swaps between groups, no group in two of them, and how many there were."""
    size = projector.shape[0]
    value = _placed(products, order, projector)[order]
    present = value.diagonal()
    gain = value + value.T - present - present[:, None]
    group = torch.arange(order.numel()) // size
    gain[group[:, None] == group] = 0
    gains, partners = gain.max(1)
    threshold = 1e-6 * present.abs().mean().item()
    changed, touched, swaps = order.clone(), set[int](), 0
    for place in gains.argsort(descending=True).tolist():
        partner = int(partners[place])
        if gains[place] <= threshold:
            break
        if touched.isdisjoint((place // size, partner // size)):
            touched.update((place // size, partner // size))
            changed[place], changed[partner] = order[partner], order[place]
            swaps += 1
    return changed, swaps


def _placed(products: Tensor, order: Tensor, projector: Tensor) -> Tensor:
    """[column, place]: the energy that each column would bring to each place, all other places as they are."""
    size, columns = projector.shape[0], order.numel()
    alone = torch.einsum("ppij,ijaa->pa", projector, products)
    value = alone[:, :, None].repeat(1, 1, columns // size)
    weights = 2 * projector.flatten(2).clone()
    weights[range(size), range(size)] = 0
    for place in range(size):
        present = products[:, :, :, order[place::size]].flatten(0, 1).flatten(1)
        value += (weights[:, place] @ present).view_as(value)
    return value.permute(1, 2, 0).flatten(1)
