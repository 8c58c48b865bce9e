"""Rounding a matrix to a code: what it costs at the outputs, and that what is stored is what was chosen."""

import pytest
import torch
from torch import Tensor

from modelpress.spec.codes import CODES, Code
from workers.compression.encoded import Encoded
from workers.compression.math import rounding
from workers.compression.math.fitting import damped
from workers.compression.math.rounding import relative_error, rounded

KINDS = ("int8", "int4_g64", "q8_0", "iq4_nl", "mxfp4", "q6_k", "q3_k")
"""A unit for each row, for each group, and for several groups; powers of two; levels at equal distances or not."""

every_kind = pytest.mark.parametrize("code", [CODES[name] for name in KINDS], ids=KINDS)

ROWS, COLUMNS = 8, 256


def second_moment(columns: int = COLUMNS) -> Tensor:
    """Return the damped second moment of correlated inputs of different energies."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(2000, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
    inputs = (shared + torch.randn(2000, columns, generator=generator)) * torch.rand(columns, generator=generator)
    return damped(inputs.T @ inputs / len(inputs))[0]


def a_matrix(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) / 20


def cost(weight: Tensor, encoded: Encoded, second: Tensor) -> float:
    return relative_error(weight, encoded.decoded(), second.float())


@every_kind
def test_feedback_costs_less_than_rounding_each_weight_alone(code: Code) -> None:
    weight, second = a_matrix(), second_moment()
    alone = rounded(code, weight, torch.diag(second.diagonal()))
    assert cost(weight, rounded(code, weight, second), second) < 0.7 * cost(weight, alone, second)


@every_kind
def test_changing_single_levels_afterwards_costs_less_still(code: Code) -> None:
    weight, second = a_matrix(), second_moment()
    after_feedback = cost(weight, rounded(code, weight, second, sweeps=0), second)
    assert cost(weight, rounded(code, weight, second, sweeps=2), second) < after_feedback


@pytest.mark.parametrize("code", ["q5_0", "q4_0", "int4_g128"])
def test_a_matrix_of_few_levels_is_recognised(code: str) -> None:
    second = second_moment()
    first = rounded(CODES[code], a_matrix(), second)
    again = rounded(CODES[code], first.decoded(), second)
    assert cost(first.decoded(), again, second) < 0.05 * cost(a_matrix(), first, second)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_units_have_the_precision_in_which_they_are_stored(code: Code, dtype: torch.dtype) -> None:
    encoded = rounded(code, a_matrix(), second_moment(), units=dtype)
    assert encoded.units.dtype == dtype
    assert encoded.units.shape == (ROWS, COLUMNS // (code.block or COLUMNS))
    assert encoded.levels.dtype == torch.uint8 and int(encoded.levels.max()) < len(code.levels)
    assert torch.isfinite(encoded.decoded()).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_units_that_are_powers_of_two_stay_so(size: float) -> None:
    exponents = rounded(CODES["mxfp4"], size * a_matrix(), second_moment(), units=torch.bfloat16).units.float().log2()
    assert torch.equal(exponents, exponents.round())


@every_kind
def test_each_row_is_rounded_by_itself(code: Code) -> None:
    weight, second = a_matrix(), second_moment()
    whole = rounded(code, weight, second).decoded()
    parts = torch.cat([rounded(code, rows, second).decoded() for rows in torch.split(weight, 3)])
    # Products of other shapes are summed in another order, which may tip a weight between two levels.
    assert float((whole != parts).float().mean()) < 0.01


@every_kind
def test_units_may_be_fitted_a_row_at_a_time(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    together = rounded(code, a_matrix(), second_moment()).decoded()
    monkeypatch.setattr(rounding, "FITTED", 1)
    apart = rounded(code, a_matrix(), second_moment()).decoded()
    assert float((together != apart).float().mean()) < 0.01


@pytest.mark.parametrize("code", ["q6_k", "iq4_xs", "q3_k"])
def test_scales_of_groups_stay_within_their_bits(code: str) -> None:
    weight = a_matrix()
    weight[:, :16] *= 100
    encoded = rounded(CODES[code], weight, second_moment())
    assert encoded.scales is not None and CODES[code].scales is not None
    least, most = CODES[code].scales or (0, 0)
    assert encoded.scales.dtype == torch.int8
    assert least <= int(encoded.scales.min()) and int(encoded.scales.max()) <= most


@pytest.mark.parametrize("code", ["int8", "int4_g32", "int4_g64", "int4_g128"])
def test_units_of_compressed_tensors_are_positive(code: str) -> None:
    assert (rounded(CODES[code], a_matrix(), second_moment()).units >= 0).all()


@every_kind
def test_zeros_stay_zeros(code: Code) -> None:
    weight, second = a_matrix(), second_moment()
    weight[3] = 0
    decoded = rounded(code, weight, second).decoded()
    assert torch.isfinite(decoded).all() and not decoded[3].any()
    assert not rounded(code, torch.zeros_like(weight), second).decoded().any()


@every_kind
def test_a_group_of_zeros_gives_finite_weights(code: Code) -> None:
    weight = a_matrix()
    weight[:, 128:] = 0
    assert cost(weight, rounded(code, weight, second_moment()), second_moment()) < 0.3


@every_kind
def test_inputs_that_never_fired_give_finite_weights(code: Code) -> None:
    second = torch.zeros(COLUMNS, COLUMNS)
    second[:100, :100] = second_moment(100)
    for moment in (second, torch.zeros(COLUMNS, COLUMNS)):
        decoded = rounded(code, a_matrix(), damped(moment)[0]).decoded()
        assert float((decoded - a_matrix()).norm() / a_matrix().norm()) < 1


@every_kind
def test_the_smallest_and_largest_weights_give_finite_ones(code: Code) -> None:
    for size in (1e-40, 1e-12, 1e7):
        assert torch.isfinite(rounded(code, a_matrix() * size, second_moment()).decoded()).all()


def test_a_code_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="576 weights are not a whole number of q6_k's blocks of 256"):
        rounded(CODES["q6_k"], torch.ones(2, 576), torch.eye(576))


def test_units_may_turn_the_levels_round() -> None:
    # The lowest level is farther out than the highest one, so the largest weight of a group belongs there.
    weight = torch.linspace(-0.5, 1, 32).repeat(2, 1)
    assert (rounded(CODES["q4_0"], weight, torch.eye(32)).units < 0).all()
