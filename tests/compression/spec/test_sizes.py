"""What a target ratio leaves of a model that keeps its architecture, counted before it is known which blocks go."""

import pytest

from tests.compression.steps.test_factor import TINY, open_tiny
from workers.compression.spec.catalog import RESIZINGS, UnknownMethod
from workers.compression.spec.dimensions import narrowed
from workers.compression.spec.heads import regrouped
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.plans import TOLERANCE, Plan, RatioOutOfRange, feasible_range
from workers.compression.spec.sizes import resized_plan, resizing_range


@pytest.fixture(scope="module", params=TINY)
def inventory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    wide = {"intermediate_size": 640, "n_inner": 640, "ffn_dim": 640}
    return open_tiny(request.param, tmp_path_factory.mktemp(request.param), {**TINY[request.param], **wide}).inventory


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", RESIZINGS)
def test_the_target_is_met_all_over_the_range(name: str, part: float, inventory: Inventory) -> None:
    feasible = resizing_range(inventory, name)
    target = feasible.lowest + part * (feasible.highest - feasible.lowest)
    assert resized_plan(inventory, name, target).ratio == pytest.approx(target, rel=TOLERANCE)


def test_fusion_gives_up_whole_blocks_before_it_narrows_what_remains(inventory: Inventory) -> None:
    without_one = inventory.total_parameters - inventory.block_parameters[0]
    exactly, beyond = (
        resized_plan(inventory, "fusion", inventory.total_parameters / without_one * by) for by in (1, 1.1)
    )
    assert (exactly.removed, exactly.intermediate_size) == (1, None)
    assert beyond.removed == 1
    assert beyond.intermediate_size is not None


def test_all_over_its_range_hybrid_leaves_the_factors_a_share_that_they_can_bear(inventory: Inventory) -> None:
    feasible = resizing_range(inventory, "hybrid")
    for part in (0.0, 0.01, 0.5, 0.99, 1.0):
        plan = resized_plan(inventory, "hybrid", feasible.lowest + part * (feasible.highest - feasible.lowest))
        assert plan.intermediate_size is not None
        narrower = narrowed(inventory, plan.intermediate_size)
        assert narrower.total_parameters / plan.parameters_after in feasible_range(narrower, "kronecker")


def test_width_alone_keeps_every_block(inventory: Inventory) -> None:
    assert resized_plan(inventory, "width", 1.2).removed == 0


def test_fusion_reaches_higher_ratios_than_width_and_says_where_it_ends(inventory: Inventory) -> None:
    highest = resizing_range(inventory, "fusion").highest
    assert highest > resizing_range(inventory, "width").highest
    with pytest.raises(RatioOutOfRange, match=f"to {highest:.3f}"):
        resized_plan(inventory, "fusion", highest * 1.01)


def test_a_method_that_factors_does_not_resize(inventory: Inventory) -> None:
    with pytest.raises(UnknownMethod, match="kronecker"):
        resizing_range(inventory, "kronecker")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    return open_tiny("llama", tmp_path_factory.mktemp("llama"), {**TINY["llama"], "intermediate_size": 640}).inventory


@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_with_fewer_key_value_heads_the_target_is_met_all_over_the_range(part: float, llama: Inventory) -> None:
    feasible = resizing_range(llama, "width", 1)
    target = feasible.lowest + part * (feasible.highest - feasible.lowest)
    plan = resized_plan(llama, "width", target, 1)
    assert plan.key_value_heads == 1
    assert plan.ratio == pytest.approx(target, rel=TOLERANCE)
    narrower = regrouped(llama, 1)
    assert plan.parameters_after == narrowed(narrower, plan.intermediate_size or 640).total_parameters


def test_where_fewer_heads_alone_meet_the_target_mlps_stay(llama: Inventory) -> None:
    lowest = resizing_range(llama, "width", 1).lowest
    assert resized_plan(llama, "width", lowest, 1).intermediate_size is None
    with pytest.raises(RatioOutOfRange, match=f"from {lowest:.3f}"):
        resized_plan(llama, "width", lowest * 0.99, 1)


def test_what_goes_with_heads_need_not_go_with_hidden_units(llama: Inventory) -> None:
    fewer, all_heads = resized_plan(llama, "width", 1.5, 1), resized_plan(llama, "width", 1.5)
    assert fewer.intermediate_size is not None
    assert all_heads.intermediate_size is not None
    assert fewer.intermediate_size > all_heads.intermediate_size


def test_a_plan_reads_back_the_key_value_heads_that_it_wrote(llama: Inventory) -> None:
    plan = resized_plan(llama, "width", 1.5, 1)
    assert Plan.from_dict(plan.to_dict()) == plan
