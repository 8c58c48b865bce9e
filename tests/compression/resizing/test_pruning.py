"""Choosing inputs that a matrix can do without, against the same by exhaustive refitting."""

import pytest
import torch
from torch import Tensor

from workers.compression.resizing import pruning
from workers.compression.resizing.pruning import prune


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
    with pytest.raises(ValueError, match=f"of 12 units {size} cannot be kept"):
        prune(*problem(), size)
