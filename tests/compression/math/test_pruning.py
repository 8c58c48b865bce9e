"""Choosing inputs that a matrix can do without, against the same by exhaustive refitting."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from workers.compression.math import pruning
from workers.compression.math.pruning import prune, prune_groups


def problem(inputs: int = 12, outputs: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    samples = torch.randn(200, inputs, generator=generator, dtype=torch.float64)
    samples = samples @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), samples.T @ samples / 200


def error_without(matrix: Tensor, moments: Tensor, kept: list[int]) -> float:
    """The least error that the columns `kept` can give, by least squares."""
    columns = torch.linalg.solve(moments[kept][:, kept], (matrix @ moments[:, kept]).T).T
    lost = matrix.clone()
    lost[:, kept] -= columns
    return float(((lost @ moments) * lost).sum())


def greedily_kept(matrix: Tensor, moments: Tensor, size: int) -> list[int]:
    kept = list(range(len(moments)))
    while len(kept) > size:
        without = {unit: error_without(matrix, moments, [other for other in kept if other != unit]) for unit in kept}
        kept.remove(min(without, key=without.__getitem__))
    return kept


@pytest.mark.parametrize("at_once", [1, 3, 32])
def test_the_units_that_go_are_those_of_exhaustive_refitting(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "REMOVED_AT_ONCE", at_once)
    matrix, moments = problem()
    assert prune(matrix, moments, 5).kept.tolist() == greedily_kept(matrix, moments, 5)


def test_the_columns_are_refitted_by_least_squares() -> None:
    matrix, moments = problem()
    found = prune(matrix, moments, 5)
    lost = matrix.clone()
    lost[:, found.kept] -= found.columns
    assert (lost @ moments)[:, found.kept].abs().max() < 1e-9
    whole = float(((matrix @ moments) * matrix).sum())
    assert found.error == pytest.approx((error_without(matrix, moments, found.kept.tolist()) / whole) ** 0.5)


def test_of_two_that_replace_each_other_only_one_goes() -> None:
    matrix, moments = problem()
    twins = torch.cat((torch.arange(12), torch.arange(12)))
    doubled = torch.cat((matrix, matrix), dim=1)
    found = prune(doubled, moments[twins][:, twins] + 1e-9 * torch.eye(24), 12)
    assert sorted((found.kept % 12).tolist()) == list(range(12))
    assert found.error < 1e-4


def test_an_output_without_weight_has_no_say() -> None:
    matrix, moments = problem()
    first_alone = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    expected = prune(matrix[:1], moments, 5).kept
    assert not torch.equal(prune(matrix, moments, 5).kept, expected)
    assert torch.equal(prune(matrix, moments, 5, first_alone).kept, expected)


@pytest.mark.parametrize("size", [0, 12, 13])
def test_a_size_that_removes_nothing_or_all_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {size} of 12 units"):
        prune(*problem(), size)


def samples_of(moments: Tensor) -> Tensor:
    """Inputs [tokens, in] that have just these moments."""
    root: Tensor = torch.linalg.cholesky(moments)
    return root.T


def least_squares(matrix: Tensor, samples: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """The columns of a direct fit of the outputs, and the energy that it misses."""
    fitted = torch.linalg.lstsq(samples[:, kept], samples @ matrix.T)
    missed = samples[:, kept] @ fitted.solution - samples @ matrix.T
    return fitted.solution.T, float(missed.square().sum())


def inputs_of(groups: tuple[int, ...], width: int) -> list[int]:
    return [group * width + each for group in groups for each in range(width)]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_the_one_group_that_goes_is_the_cheapest_of_all(width: int) -> None:
    matrix, moments = problem()
    groups = 12 // width
    found = prune_groups(matrix, moments, width, groups - 1)
    candidates = [inputs_of(chosen, width) for chosen in combinations(range(groups), groups - 1)]
    missed = [least_squares(matrix, samples_of(moments), kept)[1] for kept in candidates]
    assert found.kept.tolist() == candidates[missed.index(min(missed))]


def test_groups_go_one_by_one_as_exhaustive_refitting_has_it() -> None:
    matrix, moments = problem()
    samples, kept = samples_of(moments), tuple(range(6))
    while len(kept) > 2:
        kept = min(
            combinations(kept, len(kept) - 1), key=lambda rest: least_squares(matrix, samples, inputs_of(rest, 2))[1]
        )
    assert prune_groups(matrix, moments, 2, 2).kept.tolist() == inputs_of(kept, 2)


def test_the_columns_of_the_groups_that_stay_and_their_error_are_those_of_least_squares() -> None:
    matrix, moments = problem()
    found = prune_groups(matrix, moments, 3, 2)
    columns, missed = least_squares(matrix, samples_of(moments), found.kept.tolist())
    torch.testing.assert_close(found.columns, columns)
    whole = float((samples_of(moments) @ matrix.T).square().sum())
    assert found.error == pytest.approx((missed / whole) ** 0.5)


def test_a_group_that_its_twin_replaces_goes_whatever_it_carries() -> None:
    matrix, moments = problem(inputs=6)
    again = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    amplified = 100 * matrix[:, again]
    found = prune_groups(amplified, moments[again][:, again] + 1e-9 * torch.eye(8), 2, 3)
    assert sorted(again[found.kept].tolist()) == list(range(6))
    assert found.error < 1e-4


@pytest.mark.parametrize(("width", "count"), [(3, 0), (3, 4), (5, 1)])
def test_groups_that_cannot_be_kept_are_refused(width: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {count} groups of {width} "):
        prune_groups(*problem(), width, count)
