"""Matrices of zeros, of low rank, and inputs that never fired, in every closed-form fit."""

import pytest
import torch

from modelpress.spec.structures import LowRank, Pivoted, Structure
from workers.compression.math.degenerate import relative
from workers.compression.math.dominant_rows import dominant_rows
from workers.compression.math.fitting import Moments, fit, matrix, problem
from workers.compression.math.pruning import prune

STRUCTURES = [LowRank(6), Pivoted(6), Pivoted(6, folded=True)]


def masked(rows: int, columns: int, rank: int) -> torch.Tensor:
    """A matrix whose rows behind the first `rank` are zero."""
    weight = torch.randn(rows, columns)
    weight[rank:] = 0
    return weight


def of_rank(rows: int, columns: int, rank: int) -> torch.Tensor:
    return torch.randn(rows, rank) @ torch.randn(rank, columns)


def moments_of(inputs: torch.Tensor) -> Moments:
    moments = Moments.empty(inputs.shape[-1])
    moments.add(inputs)
    return moments


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("rows", "columns"), [(16, 24), (24, 16)])
@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("kind", [masked, of_rank])
def test_a_matrix_of_less_rank_than_asked_for_is_fitted_exactly(
    structure: Structure, rows: int, columns: int, rank: int, kind: object
) -> None:
    torch.manual_seed(0)
    weight = kind(rows, columns, rank)
    site = problem(weight, moments_of(torch.randn(64, columns)), outputs=torch.rand(rows).double() + 0.5)
    factors = fit(structure, site)
    order = factors.pop("order") if isinstance(structure, Pivoted) and structure.folded else torch.arange(rows)
    approximation = matrix(structure, factors, site.target)
    assert approximation.isfinite().all()
    torch.testing.assert_close(approximation, weight.double()[order], atol=1e-6, rtol=1e-6)
    assert site.reordered(order).error(approximation) < 1e-9


@pytest.mark.parametrize("structure", STRUCTURES[:2])
def test_inputs_that_never_fired_leave_a_finite_fit(structure: Structure) -> None:
    torch.manual_seed(0)
    for rows, columns in ((16, 24), (24, 16)):
        site = problem(torch.randn(rows, columns), moments_of(torch.zeros(64, columns)))
        factors = fit(structure, site)
        assert all(factor.float().isfinite().all() for factor in factors.values())
        assert 0 < site.error(matrix(structure, factors, site.target)) < 1


@pytest.mark.parametrize("rank", [1, 3])
def test_dominant_rows_of_dependent_columns_give_all_others(rank: int) -> None:
    torch.manual_seed(0)
    factor = torch.randn(12, rank, dtype=torch.float64) @ torch.randn(rank, 5, dtype=torch.float64)
    factor[:, -1] = factor[:, 0]
    pivots, others, mixing = dominant_rows(factor)
    assert sorted(torch.cat((pivots, others)).tolist()) == list(range(12))
    torch.testing.assert_close(mixing @ factor[pivots], factor[others])
    assert mixing.abs().max() < 2


def test_units_of_a_projection_of_zeros_can_go() -> None:
    found = prune(torch.zeros(4, 8).double(), torch.eye(8).double(), 3)
    assert len(found.kept) == 3
    assert found.error == 0.0
    assert (found.columns == 0).all()


@pytest.mark.parametrize(
    ("lost", "total", "share"), [(0.0, 0.0, 0.0), (1.0, 4.0, 0.25), (-1e-30, 1.0, 0.0), (1.0, 0.0, float("inf"))]
)
def test_a_share_of_nothing_is_nothing(lost: float, total: float, share: float) -> None:
    assert relative(lost, total) == share
