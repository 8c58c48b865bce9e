"""The learning rate over a run."""

import pytest

from workers.compression.training.schedule import WarmupCosine


@pytest.mark.parametrize("holds_peak", [True, False])
def test_the_rate_rises_linearly_and_falls_to_nothing(holds_peak: bool) -> None:
    schedule = WarmupCosine(0.1, holds_peak)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[:9] == pytest.approx([step / 10 for step in range(1, 10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] < 1e-3


def test_without_a_warm_up_the_first_step_takes_the_highest_rate() -> None:
    assert WarmupCosine(0.0).factor(0, 10) == 1.0


@pytest.mark.parametrize(("warmup_ratio", "last"), [(0.1, 9), (0.125, 12)])
def test_the_step_in_which_the_warm_up_ends_takes_the_highest_rate_only_if_it_holds_the_peak(
    warmup_ratio: float, last: int
) -> None:
    assert WarmupCosine(warmup_ratio).factor(last, 100) == 1.0
    assert 0.999 < WarmupCosine(warmup_ratio, holds_peak=False).factor(last, 100) < 1.0
