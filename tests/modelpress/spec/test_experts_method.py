"""How many experts the method `experts` leaves."""

import pytest

from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import MethodDoesNotFit
from modelpress.spec.ranges import RatioOutOfRange
from modelpress.spec.steps import KeepExperts
from tests.support.inventories import llama_like, mixture
from tests.support.planning import plan_of, range_of


def count_for(found: Inventory, ratio: float) -> int:
    step = plan_of(found, "experts", ratio).step(KeepExperts)
    assert step is not None
    return step.count


def test_an_expert_is_counted_with_its_row_of_the_router() -> None:
    counts = mixture().experts
    assert counts is not None
    assert (counts.total, counts.chosen) == (16, 2)
    assert counts.parameters == (3 * 64 * 32 + 32,) * 3


def test_it_leaves_the_most_experts_that_reach_the_ratio() -> None:
    found = mixture()
    plan = plan_of(found, "experts", 1.5)
    one_more = plan.parameters_after + sum(found.experts.parameters if found.experts else ())
    assert found.total_parameters / plan.parameters_after >= 1.5
    assert found.total_parameters / one_more < 1.5


def test_each_token_still_finds_as_many_experts_as_it_is_sent_to() -> None:
    found = mixture(experts=8, num_experts_per_tok=6)
    assert count_for(found, range_of(found, "experts").highest) == 6


def test_a_grouped_router_keeps_equal_groups_of_at_least_two() -> None:
    fields = {"n_group": 4, "num_experts_per_tok": 2}
    found = mixture("deepseek_v3", **fields)
    assert count_for(found, 1.01) == 12
    assert count_for(found, range_of(found, "experts").highest) == 8


def test_a_ratio_beyond_the_fewest_experts_is_refused() -> None:
    with pytest.raises(RatioOutOfRange):
        plan_of(mixture(), "experts", 30)


def test_a_dense_model_has_no_experts_to_lose() -> None:
    with pytest.raises(MethodDoesNotFit, match="no mixture of experts"):
        plan_of(llama_like(), "experts", 1.2)
