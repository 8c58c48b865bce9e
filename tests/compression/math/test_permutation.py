"""The search for orders: against planted ones, against brute force, and against doing nothing."""

import itertools

import pytest
import torch
from torch import Tensor

from modelpress.spec.structures import Kronecker
from workers.compression.math.permutation import grouped, kept_energy, search


def shuffled(structure: Kronecker, noise: float, seed: int = 0) -> Tensor:
    """A sum of Kronecker products with unit mean square, rows and columns shuffled, with noise of the given size."""
    generator = torch.Generator().manual_seed(seed)
    (m1, m2), (n1, n2) = structure.out_shape, structure.in_shape
    planted = torch.zeros(m1 * m2, n1 * n2)
    for _ in range(structure.terms):
        planted += torch.kron(torch.randn(m1, n1, generator=generator), torch.randn(m2, n2, generator=generator))
    planted /= planted.square().mean().sqrt()
    rows, columns = (torch.randperm(size, generator=generator) for size in planted.shape)
    return planted[rows][:, columns] + noise * torch.randn(planted.shape, generator=generator)


@pytest.mark.parametrize("terms", [1, 2])
def test_a_planted_matrix_is_found_under_the_noise(terms: int) -> None:
    structure = Kronecker(terms, (96, 2), (96, 4), permute_in=True, permute_out=True)
    matrix = shuffled(structure, noise=0.1)
    assert search(matrix, structure, (grouped,)).energy * 1.01 > 0.98


def test_the_orders_give_the_energy_that_is_reported() -> None:
    structure = Kronecker(2, (20, 2), (16, 3), permute_in=True, permute_out=True)
    matrix = torch.randn(40, 48, generator=torch.Generator().manual_seed(0))
    found = search(matrix, structure, (grouped,))
    assert sorted(found.rows.tolist()) == list(range(40)) and sorted(found.columns.tolist()) == list(range(48))
    kept = kept_energy(matrix[found.rows][:, found.columns], 2, 3, 2) / matrix.square().sum().item()
    assert found.energy == pytest.approx(kept, abs=1e-6)


def test_the_search_improves_even_where_nothing_is_planted() -> None:
    structure = Kronecker(4, (64, 2), (64, 4), permute_in=True, permute_out=True)
    matrix = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    plain = kept_energy(matrix, 2, 4, 4) / matrix.square().sum().item()
    assert search(matrix, structure, (grouped,)).energy > plain + 0.04


def test_a_small_matrix_ends_within_two_percent_of_every_order_tried() -> None:
    structure = Kronecker(1, (4, 1), (3, 2), permute_in=True)
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    best = max(kept_energy(matrix[:, list(order)], 1, 2, 1) for order in itertools.permutations(range(6)))
    assert search(matrix, structure, (grouped,)).energy > 0.98 * best / matrix.square().sum().item()


def test_a_side_that_may_not_be_permuted_keeps_its_order() -> None:
    structure = Kronecker(2, (20, 2), (16, 3), permute_in=True)
    assert torch.equal(search(torch.randn(40, 48), structure, (grouped,)).rows, torch.arange(40))
