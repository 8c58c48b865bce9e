"""The fits: each against the closed-form optimum, a planted solution or brute force."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modelpress.spec.structures import Kronecker, LowRank, Pivoted, Structure
from workers.compression.math import fitting, kronecker
from workers.compression.math.dominant_rows import PIVOT_BOUND
from workers.compression.math.fitting import (
    LeastSquares,
    Moments,
    fit,
    low_rank,
    matrix,
    pivoted,
    problem,
    spectrum,
)
from workers.compression.math.kronecker import rearranged_fit

SHAPES = [(24, 40), (40, 24), (24, 24)]


def inputs(features: int, tokens: int = 500, seed: int = 1) -> Tensor:
    """Correlated, with a decaying spectrum, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    return torch.randn(tokens, features, generator=generator) / torch.arange(1, features + 1) @ mixing


def a_problem(shape: tuple[int, int], outputs: bool = False, seed: int = 0, compensation: float = 0.0) -> LeastSquares:
    generator = torch.Generator().manual_seed(seed)
    moments = Moments.empty(shape[1])
    x = inputs(shape[1])
    moments.add(x, x.roll(1, 0) if compensation else None)
    weight = torch.randn(*shape, generator=generator)
    root = torch.rand(shape[0], generator=generator).double() + 0.1 if outputs else None
    return problem(weight, moments, damping=1e-4, compensation=compensation, outputs=root)


def dense(structure: Structure, site: LeastSquares) -> Tensor:
    return matrix(structure, fit(structure, site), site.target)


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_low_rank_leaves_exactly_the_singular_values_cut_off(shape: tuple[int, int], outputs: bool) -> None:
    site = a_problem(shape, outputs)
    scales = torch.ones(shape[0], 1) if site.outputs is None else site.outputs[:, None]
    values = torch.linalg.svdvals(scales * (site.target @ site.inputs)).square()
    assert torch.allclose(spectrum(site), values)
    for rank in (1, 7, 20):
        second, first = low_rank(site, rank)
        assert site.error(second @ first) == pytest.approx(float(values[rank:].sum() / values.sum()), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_pivoting_loses_nothing(shape: tuple[int, int]) -> None:
    site = a_problem(shape)
    assert torch.allclose(dense(Pivoted(9), site), dense(LowRank(9), site), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_entry_of_the_mixing_matrix_is_large(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    second, first = (torch.randn(*size, generator=generator) for size in ((shape[0], 11), (11, shape[1])))
    assert float(pivoted(second, first)["mixing"].abs().max()) <= PIVOT_BOUND


def test_full_compensation_is_the_least_squares_map_to_the_originals_outputs() -> None:
    x = inputs(16)
    drifted = x @ torch.linalg.qr(torch.eye(16) + 0.1 * torch.randn(16, 16)).Q + 0.05 * torch.randn_like(x)
    moments = Moments.empty(16)
    moments.add(drifted, x)
    weight = torch.randn(8, 16)
    best = torch.linalg.lstsq(drifted.double(), x.double() @ weight.T.double()).solution.T
    assert torch.allclose(problem(weight, moments, damping=1e-12, compensation=1.0).target, best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compensation", [0.0, 0.5, 1.0])
def test_equal_streams_leave_nothing_to_compensate(compensation: float) -> None:
    x = inputs(16)
    moments = Moments.empty(16)
    moments.add(x)
    weight = torch.randn(8, 16)
    assert torch.allclose(
        problem(weight, moments, damping=0.05, compensation=compensation).target, weight.double(), atol=1e-6
    )


def test_moments_do_not_depend_on_the_batches() -> None:
    x, y = inputs(8), inputs(8, seed=2)
    whole, halves = Moments.empty(8), Moments.empty(8)
    whole.add(x, y)
    for part in (slice(0, 100), slice(100, None)):
        halves.add(x[part], y[part])
    assert whole.cross is not None and halves.cross is not None
    assert torch.allclose(whole.cross, halves.cross, rtol=1e-4, atol=1e-3) and whole.tokens == halves.tokens


def test_moments_that_are_given_up_leave_the_same_fit() -> None:
    def gathered() -> Moments:
        moments = Moments.empty(16)
        moments.add(inputs(16), inputs(16, seed=2))
        return moments

    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    kept, spent = gathered(), gathered()
    expected = problem(weight, kept, compensation=0.5)
    found = problem(weight, spent, compensation=0.5, spend=True)
    assert torch.equal(found.target, expected.target) and torch.equal(found.inputs, expected.inputs)
    assert spent.inputs.numel() == 0 and spent.cross is None
    assert torch.equal(kept.inputs, gathered().inputs)


def test_a_problem_leaves_the_weight_as_it_is() -> None:
    moments = Moments.empty(16)
    moments.add(inputs(16), inputs(16, seed=2))
    weight = torch.randn(8, 16, dtype=torch.float64)
    before = weight.clone()
    assert not torch.equal(problem(weight, moments, compensation=1.0).target, before)
    assert torch.equal(weight, before)


def test_slices_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def errors_and_spectra() -> list[Tensor]:
        sites = [a_problem(shape, outputs=True, compensation=0.5) for shape in SHAPES]
        errors = [site.error(torch.ones(shape)) for site, shape in zip(sites, SHAPES, strict=True)]
        return [torch.tensor(errors), *(spectrum(site) for site in sites), *(site.inputs for site in sites)]

    whole = errors_and_spectra()
    monkeypatch.setattr(fitting, "SLICE", 7)
    for sliced, expected in zip(errors_and_spectra(), whole, strict=True):
        assert (sliced - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_make_no_difference_to_what_a_matrix_is_fitted_to(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = a_problem(shape, compensation=0.5)
    monkeypatch.setattr(fitting, "FEW", 5)
    torch.testing.assert_close(a_problem(shape, compensation=0.5).target, whole.target)
    sliced = whole.error(torch.ones(shape))
    monkeypatch.undo()
    assert sliced == pytest.approx(whole.error(torch.ones(shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_slices_make_no_difference_to_pivoted_factors(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    site = a_problem(shape, outputs=True)
    whole = dense(Pivoted(9), site)
    monkeypatch.setattr(fitting, "SLICE", 7)
    torch.testing.assert_close(dense(Pivoted(9), site), whole)


def test_a_planted_kronecker_sum_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = [(torch.randn(4, 10, generator=generator), torch.randn(6, 4, generator=generator)) for _ in range(3)]
    weight = sum((torch.kron(left, right) for left, right in terms), torch.zeros(24, 40))
    site = problem(weight, _moments(40), damping=1e-3)
    assert site.error(dense(Kronecker(3, (4, 6), (10, 4)), site)) < 1e-10


def test_a_planted_sum_with_shuffled_rows_and_columns_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.kron(torch.randn(24, 20, generator=generator), torch.randn(2, 2, generator=generator))
    shuffled = weight[torch.randperm(48, generator=generator)][:, torch.randperm(40, generator=generator)]
    site = problem(shuffled, Moments(torch.eye(40), tokens=1), damping=1e-3)
    assert site.error(dense(Kronecker(1, (24, 2), (20, 2), True, True), site)) < 1e-8


@pytest.mark.parametrize("shapes", [((12, 2), (20, 2)), ((4, 6), (10, 4)), ((2, 12), (4, 10))])
def test_the_weighted_kronecker_fit_beats_the_papers(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    site = a_problem((24, 40))
    structure = Kronecker(2, *shapes)
    left, right = rearranged_fit(structure, site.target)
    papers = sum(torch.kron(a, b) for a, b in zip(left, right, strict=True))
    assert site.error(dense(structure, site)) < 0.98 * site.error(torch.as_tensor(papers))


def test_the_alternating_fit_reaches_a_point_that_no_small_step_improves() -> None:
    site = a_problem((6, 8))
    structure = Kronecker(1, (3, 2), (4, 2))
    factors = fit(structure, site)
    best = site.error(torch.kron(factors["left"][0], factors["right"][0]))
    for name, step in itertools.product(("left", "right"), (-0.05, 0.05)):
        for index in range(factors[name].numel()):
            moved = {key: value.clone() for key, value in factors.items()}
            moved[name].view(-1)[index] += step
            assert site.error(torch.kron(moved["left"][0], moved["right"][0])) >= best - 1e-4


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("rows", [2, 6])
def test_the_kronecker_fit_heeds_what_the_outputs_weigh(rows: int, permuted: bool) -> None:
    site = a_problem((24, 40), outputs=True)
    structure = Kronecker(2, (24 // rows, rows), (10, 4), permuted, permuted)
    blind = fit(structure, replace(site, outputs=None))
    assert site.error(dense(structure, site)) < 0.95 * site.error(matrix(structure, blind, site.target))


def test_no_round_of_the_weighted_kronecker_fit_raises_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    site = a_problem((24, 40), outputs=True)
    structure = Kronecker(2, (6, 4), (10, 4))
    errors = []
    for rounds in range(10):
        monkeypatch.setattr(kronecker, "ALTERNATIONS", rounds)
        errors.append(site.error(dense(structure, site)))
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def _moments(features: int) -> Moments:
    moments = Moments.empty(features)
    moments.add(inputs(features))
    return moments
