"""Permuted Kronecker sums under weights: what each number of terms costs, which orders help, and tables of tokens."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modelpress.spec.structures import Kronecker
from workers.compression.math.kronecker import (
    WeightedTarget,
    errors_by_terms,
    kronecker_sum,
    separable_fit,
    weighted_fit,
)
from workers.compression.math.permutation import stratified
from workers.compression.math.tables import fit_kronecker_head, fit_kronecker_table, table_error
from workers.compression.structures import build, build_embedding

SUM = Kronecker(12, (6, 4), (10, 4))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive_definite(size: int, seed: int = 1) -> Tensor:
    samples = torch.randn(3 * size, size, generator=generator(seed), dtype=torch.float64)
    return samples.T @ samples / len(samples)


def a_target(*, outputs: bool = False) -> WeightedTarget:
    weights = torch.rand(24, generator=generator(2), dtype=torch.float64) + 0.1
    matrix = torch.randn(24, 40, generator=generator(), dtype=torch.float64)
    return WeightedTarget(matrix, positive_definite(40), weights if outputs else None)


def error_of(structure: Kronecker, target: WeightedTarget) -> float:
    layer = build(structure.to_dict(), target.matrix.shape[1], len(target.matrix), bias=False, dtype=torch.float64)
    layer.load_state_dict({name: factor for name, factor in weighted_fit(structure, target).items() if name != "order"})
    return target.less(layer.dense().detach()).energy()


def test_more_terms_never_cost_more_and_none_cost_everything() -> None:
    target = a_target(outputs=True)
    errors = errors_by_terms(replace(SUM, terms=16), target).tolist()
    assert len(errors) == 17
    assert errors[0] == pytest.approx(target.energy())
    assert all(after <= before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 1e-9 * errors[0]


@pytest.mark.parametrize("permuted", [False, True])
def test_the_predicted_errors_are_near_to_those_of_the_fits_from_above(permuted: bool) -> None:
    target = a_target()
    structure = replace(SUM, permute_in=permuted, permute_out=permuted)
    predicted = errors_by_terms(structure, target)
    for terms in (2, 6, 12):
        found = error_of(replace(structure, terms=terms), target)
        # A search may end at orders that are a little worse than the strata it began with.
        assert 0.6 * predicted[terms] < found <= (1.05 if permuted else 1.0) * predicted[terms]


def test_where_the_weights_are_a_product_the_first_fit_is_the_best_one() -> None:
    moments = torch.kron(positive_definite(10), positive_definite(4, seed=3))
    outputs = torch.kron(torch.rand(6, generator=generator()), torch.rand(4, generator=generator(5)) + 0.1).double()
    target = replace(a_target(), moments=moments, outputs=outputs)
    structure = replace(SUM, terms=3)
    first = target.less(kronecker_sum(*separable_fit(structure, target))).energy()
    assert error_of(structure, target) == pytest.approx(first, rel=1e-6)
    assert errors_by_terms(structure, target)[3] == pytest.approx(first, rel=1e-6)


def test_strata_hold_one_column_of_every_range_of_norms() -> None:
    order = stratified(torch.diag(torch.tensor([3.0, 8.0, 1.0, 6.0, 2.0, 7.0])), 3)
    assert order.view(2, 3).tolist() == [[1, 3, 4], [5, 0, 2]]


def test_an_order_pays_where_outputs_weigh_unequally() -> None:
    weights = torch.logspace(0, -2, 24, dtype=torch.float64)[torch.randperm(24, generator=generator(4))]
    target = replace(a_target(), outputs=weights)
    structure = replace(SUM, terms=6)
    assert error_of(replace(structure, permute_out=True), target) < 0.8 * error_of(structure, target)


def test_a_folded_sum_gives_its_outputs_in_an_order_of_its_own() -> None:
    target = a_target(outputs=True)
    structure = Kronecker(6, (6, 4), (10, 4), folded=True)
    factors = weighted_fit(structure, target)
    order = factors.pop("order")
    assert factors.keys() == {"left", "right"}
    stored = weighted_fit(replace(structure, folded=False, permute_out=True), target)
    assert torch.equal(order.argsort().int(), stored["order_out"])
    assert torch.equal(factors["left"], stored["left"])


def table_and_weights() -> tuple[Tensor, Tensor, Tensor]:
    table = torch.randn(300, 24, generator=generator())
    weights = torch.rand(300, generator=generator(1), dtype=torch.float64) + 0.05
    return table, weights, positive_definite(24).float()


def table_sum(terms: int, *, permuted: bool) -> Kronecker:
    return Kronecker(terms, (300, 1), (3, 8), permute_in=permuted)


@pytest.mark.parametrize("permuted", [False, True])
def test_a_table_is_fitted_as_if_it_were_fitted_whole(permuted: bool) -> None:
    table, weights, moments = table_and_weights()
    structure = table_sum(3, permuted=permuted)
    embedding = build_embedding(structure.to_dict(), 300, 24)
    embedding.load_state_dict(fit_kronecker_table(structure, table, weights, moments))
    ridge = 0.02 * moments.diagonal().mean() * torch.eye(24)
    whole = WeightedTarget(table.double(), (moments + ridge).double(), weights)
    found = math.sqrt(table_error(table, embedding.dense(), weights, moments + ridge))
    assert found == pytest.approx(math.sqrt(error_of(structure, whole) / whole.energy()), rel=0.02)


def test_all_terms_hold_a_table_exactly() -> None:
    table, weights, moments = table_and_weights()
    structure = table_sum(8, permuted=True)
    embedding = build_embedding(structure.to_dict(), 300, 24)
    embedding.load_state_dict(fit_kronecker_table(structure, table, weights, moments))
    torch.testing.assert_close(embedding.dense(), table, atol=1e-4, rtol=1e-4)


def test_a_head_is_fitted_to_the_table_moved_by_what_compensates() -> None:
    table, weights, moments = table_and_weights()
    moved = torch.eye(24, dtype=torch.float64) + 0.1 * torch.randn(24, 24, generator=generator(7)).double()
    structure = table_sum(5, permuted=True)
    head = build(structure.to_dict(), 24, 300, bias=False)
    head.load_state_dict(fit_kronecker_head(structure, table, weights, moments, moved))
    assert table_error(table, head.dense(), weights, moments, moved) < 0.5 * table_error(
        table, head.dense(), weights, moments
    )
