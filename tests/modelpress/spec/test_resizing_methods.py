"""What a target ratio leaves of a model that keeps its architecture, counted before it is known which blocks go."""

import pytest

from modelpress.spec.dimensions import narrowed
from modelpress.spec.heads import regrouped
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import OptionDoesNotFit
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import TOLERANCE, RatioOutOfRange
from modelpress.spec.steps import Narrow, Refit, Remove
from tests.support.compression import TINY, open_initialised
from tests.support.planning import plan_of, range_of

RESIZING = ("fusion", "fusegpt", "width", "width_low_rank")


def size_of(plan: Plan) -> int | None:
    """The hidden units that the plan leaves; None where it narrows no MLP."""
    step = plan.step(Narrow)
    return None if step is None else step.intermediate_size


def removed_by(plan: Plan) -> int:
    step = plan.step(Remove)
    return 0 if step is None else step.count


@pytest.fixture(scope="module", params=TINY)
def inventory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    wide = {"intermediate_size": 640, "n_inner": 640, "ffn_dim": 640}
    return open_initialised(
        request.param, tmp_path_factory.mktemp(request.param), {**TINY[request.param], **wide}
    ).inventory


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", RESIZING)
def test_the_target_is_met_all_over_the_range(name: str, part: float, inventory: Inventory) -> None:
    feasible = range_of(inventory, name)
    target = feasible.lowest + part * (feasible.highest - feasible.lowest)
    assert plan_of(inventory, name, target).ratio == pytest.approx(target, rel=TOLERANCE)


def test_fusion_gives_up_whole_blocks_before_it_narrows_what_remains(inventory: Inventory) -> None:
    without_one = inventory.total_parameters - inventory.block_parameters[0]
    exactly, beyond = (plan_of(inventory, "fusion", inventory.total_parameters / without_one * by) for by in (1, 1.1))
    assert [type(step) for step in exactly.steps] == [Remove, Refit]
    assert [type(step) for step in beyond.steps] == [Remove, Refit, Narrow]
    assert removed_by(exactly) == removed_by(beyond) == 1


def test_all_over_its_range_width_low_rank_leaves_the_factors_a_share_that_they_can_bear(inventory: Inventory) -> None:
    feasible = range_of(inventory, "width_low_rank")
    for part in (0.0, 0.01, 0.5, 0.99, 1.0):
        plan = plan_of(inventory, "width_low_rank", feasible.lowest + part * (feasible.highest - feasible.lowest))
        size = size_of(plan)
        assert size is not None
        narrower = narrowed(inventory, size)
        assert narrower.total_parameters / plan.parameters_after in range_of(narrower, "low_rank")


def test_width_alone_keeps_every_block(inventory: Inventory) -> None:
    assert [type(step) for step in plan_of(inventory, "width", 1.2).steps] == [Narrow]


def test_fusion_reaches_higher_ratios_than_width_and_says_where_it_ends(inventory: Inventory) -> None:
    highest = range_of(inventory, "fusion").highest
    assert highest > range_of(inventory, "width").highest
    with pytest.raises(RatioOutOfRange, match=f"to {highest:.3f}"):
        plan_of(inventory, "fusion", highest * 1.01)


def test_more_heads_than_the_model_has_are_refused_by_the_name_of_the_option(llama: Inventory) -> None:
    with pytest.raises(OptionDoesNotFit, match="key/value heads") as refusal:
        range_of(llama, "width", key_value_heads=2)
    assert refusal.value.option == "key_value_heads"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    return open_initialised(
        "llama", tmp_path_factory.mktemp("llama"), {**TINY["llama"], "intermediate_size": 640}
    ).inventory


@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_with_fewer_key_value_heads_the_target_is_met_all_over_the_range(part: float, llama: Inventory) -> None:
    feasible = range_of(llama, "width", key_value_heads=1)
    target = feasible.lowest + part * (feasible.highest - feasible.lowest)
    plan = plan_of(llama, "width", target, key_value_heads=1)
    step = plan.step(Narrow)
    assert step is not None
    assert step.key_value_heads == 1
    assert plan.ratio == pytest.approx(target, rel=TOLERANCE)
    narrower = regrouped(llama, 1)
    assert plan.parameters_after == narrowed(narrower, size_of(plan) or 640).total_parameters


def test_where_fewer_heads_alone_meet_the_target_mlps_stay(llama: Inventory) -> None:
    lowest = range_of(llama, "width", key_value_heads=1).lowest
    assert plan_of(llama, "width", lowest, key_value_heads=1).steps == (Narrow(key_value_heads=1),)
    with pytest.raises(RatioOutOfRange, match=f"from {lowest:.3f}"):
        plan_of(llama, "width", lowest * 0.99, key_value_heads=1)


def test_what_goes_with_heads_need_not_go_with_hidden_units(llama: Inventory) -> None:
    fewer, more = size_of(plan_of(llama, "width", 1.5, key_value_heads=1)), size_of(plan_of(llama, "width", 1.5))
    assert fewer is not None
    assert more is not None
    assert fewer > more


def test_a_plan_reads_back_what_it_wrote(llama: Inventory) -> None:
    plan = plan_of(llama, "width", 1.5, key_value_heads=1)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
