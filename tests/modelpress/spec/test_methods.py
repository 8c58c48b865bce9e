"""What every registered method promises, and what the registry offers."""

import pytest
from pydantic import TypeAdapter, ValidationError

from modelpress.contract.method import MethodChoice
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import METHODS, Leaves, MethodOptions, Need, PlanningMethod, planner_of
from modelpress.spec.methods.svd import SVD, SvdOptions
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import TOLERANCE, RatioOutOfRange
from modelpress.spec.steps import Factor, FactorToSize
from tests.support.inventories import llama_like, mixture
from tests.support.planning import plan_of, range_of

CHOICE: TypeAdapter[MethodOptions] = TypeAdapter(MethodChoice)
UNMEASURED = [
    name
    for name, method in METHODS.items()
    if isinstance(method, PlanningMethod) and Need.SENSITIVITIES not in method.needs and name != "tqcompressor"
]


def model_for(name: str) -> Inventory:
    """The inventory of a model that the method takes."""
    return mixture() if name == "experts" else llama_like(blocks=6)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_named_as_it_is_registered(name: str) -> None:
    assert METHODS[name].name == METHODS[name].options().name == name


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name: str) -> None:
    method = METHODS[name]
    assert 0 < len(method.title) < len(method.description)
    assert method.description.endswith(".")


@pytest.mark.parametrize("name", METHODS)
def test_a_bare_name_stands_for_the_method_as_it_is(name: str) -> None:
    assert CHOICE.validate_python(name) == METHODS[name].options()


def test_an_option_belongs_to_its_method_alone() -> None:
    assert CHOICE.validate_python({"name": "width", "key_value_heads": 2}).model_dump() == {
        "name": "width",
        "key_value_heads": 2,
    }
    with pytest.raises(ValidationError, match="Extra inputs"):
        CHOICE.validate_python({"name": "svd", "key_value_heads": 2})


def test_a_misspelt_method_is_told_the_one_that_was_meant() -> None:
    with pytest.raises(ValidationError, match="did you mean 'width'"):
        CHOICE.validate_python("wdth")


# Experts are whole: tests/modelpress/spec/test_experts_method.py has what that method meets.
@pytest.mark.parametrize("name", [name for name in UNMEASURED if name != "experts"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_plan_meets_its_target_all_over_the_range(name: str, share: float) -> None:
    inventory = llama_like(blocks=6, width=192, hidden=512, vocabulary=1000)
    feasible = range_of(inventory, name)
    target = feasible.lowest + share * (feasible.highest - feasible.lowest)
    assert plan_of(inventory, name, target).ratio == pytest.approx(target, rel=TOLERANCE)


@pytest.mark.parametrize("name", UNMEASURED)
def test_the_ends_of_the_range_are_feasible_and_nothing_beyond_them_is(name: str) -> None:
    inventory = model_for(name)
    feasible = range_of(inventory, name)
    plan_of(inventory, name, feasible.highest)
    plan_of(inventory, name, feasible.lowest)
    with pytest.raises(RatioOutOfRange, match="reaches ratios from"):
        plan_of(inventory, name, feasible.highest * 1.01)


@pytest.mark.parametrize("name", UNMEASURED)
def test_a_method_leaves_factors_where_it_says_so(name: str) -> None:
    inventory = model_for(name)
    plan = plan_of(inventory, name, range_of(inventory, name).highest)
    factors = any(isinstance(step, Factor | FactorToSize) for step in plan.steps)
    assert factors == (METHODS[name].leaves is Leaves.FACTORED)


@pytest.mark.parametrize("name", UNMEASURED)
def test_a_plan_survives_the_way_through_json(name: str) -> None:
    inventory = model_for(name)
    plan = plan_of(inventory, name, range_of(inventory, name).highest)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_method_that_only_chooses_has_no_plan() -> None:
    assert planner_of(SvdOptions()) is SVD
    with pytest.raises(TypeError, match="use one of its candidates"):
        planner_of(METHODS["auto"].options())


def test_no_ratio_of_the_range_lies_between_what_blocks_and_what_hidden_units_reach() -> None:
    inventory = llama_like(blocks=9, width=64, hidden=48, vocabulary=200)
    feasible = range_of(inventory, "fusion")
    for number in range(201):
        target = feasible.lowest + number / 200 * (feasible.highest - feasible.lowest)
        assert plan_of(inventory, "fusion", target).ratio == pytest.approx(target, rel=0.03)
