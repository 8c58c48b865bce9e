"""Counting what structures store, and what budgets follow from it."""

import pytest

from tests.support.inventories import llama_like
from workers.compression.spec.catalog import METHODS, UnknownMethod
from workers.compression.spec.plans import (
    TOLERANCE,
    Dense,
    Halved,
    Kronecker,
    LowRank,
    MalformedStructure,
    Pivoted,
    Plan,
    RatioOutOfRange,
    Structure,
    Sum,
    Tied,
    feasible_range,
    from_dict,
    parameters,
    stored,
    to_dict,
    uniform_plan,
)

STRUCTURES: tuple[Structure, ...] = (
    Dense(),
    LowRank(5),
    Pivoted(5),
    Kronecker(3, (4, 6), (8, 2), permute_in=True),
    Sum((LowRank(2), Kronecker(1, (12, 2), (4, 4)))),
    Halved(2),
    Tied("model.embed_tokens"),
)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_structure_survives_the_way_through_json(structure: Structure) -> None:
    assert from_dict(to_dict(structure)) == structure


@pytest.mark.parametrize(
    "form", [{}, {"kind": "magic"}, {"kind": "low_rank"}, {"kind": "kronecker", "terms": 1, "out": [1]}]
)
def test_a_malformed_description_is_refused(form: dict[str, object]) -> None:
    with pytest.raises(MalformedStructure):
        from_dict(form)


def test_the_free_choice_of_basis_is_not_counted() -> None:
    assert parameters(LowRank(352), 576, 1536) - parameters(Pivoted(352), 576, 1536) == 352**2 - 576


def test_permutations_are_counted() -> None:
    plain, permuted = Kronecker(4, (384, 2), (768, 4)), Kronecker(4, (384, 2), (768, 4), True, True)
    assert parameters(plain, 768, 3072) == 4 * (384 * 768 + 2 * 4)
    assert parameters(permuted, 768, 3072) - parameters(plain, 768, 3072) == 768 + 3072


@pytest.mark.parametrize("structure", [LowRank(65), Pivoted(64), Pivoted(0), Kronecker(1, (8, 8), (10, 8))])
def test_a_structure_that_does_not_fit_is_refused(structure: Structure) -> None:
    with pytest.raises(MalformedStructure):
        parameters(structure, 64, 96)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("tied", [True, False])
def test_a_uniform_plan_meets_its_target(method: str, part: float, tied: bool) -> None:
    inventory = llama_like(width=192, hidden=512, vocabulary=1000, tied=tied)
    feasible = feasible_range(inventory, method)
    target = feasible.lowest + part * (feasible.highest - feasible.lowest)
    plan = uniform_plan(inventory, method, target)
    assert plan.ratio == pytest.approx(target, rel=TOLERANCE)
    assert plan.parameters_after == stored(inventory, plan.structures) <= inventory.total_parameters / target


@pytest.mark.parametrize("method", METHODS)
def test_the_ends_of_the_range_are_feasible_and_nothing_beyond_them_is(method: str) -> None:
    inventory = llama_like()
    feasible = feasible_range(inventory, method)
    assert 1 < feasible.lowest < 1.01 < feasible.highest
    uniform_plan(inventory, method, feasible.highest)
    uniform_plan(inventory, method, feasible.lowest)
    with pytest.raises(RatioOutOfRange, match="reaches ratios from"):
        uniform_plan(inventory, method, feasible.highest * 1.01)


def test_the_embedding_stays_whole_while_the_blocks_reach_the_target() -> None:
    inventory = llama_like(width=192, hidden=512, vocabulary=1000)
    assert inventory.embedding.name not in uniform_plan(inventory, "kronecker", 1.3).structures
    assert inventory.embedding.name in uniform_plan(inventory, "kronecker", 5.0).structures


def test_a_head_of_its_own_gives_as_the_embedding_does() -> None:
    inventory = llama_like(vocabulary=1000, tied=False)
    highest = feasible_range(inventory, "kronecker").highest
    plan = uniform_plan(inventory, "kronecker", highest)
    assert plan.structures["lm_head"] == plan.structures[inventory.embedding.name]
    assert plan.parameters_after < inventory.total_parameters / highest + 2


@pytest.mark.parametrize("method", ["svd", "kronecker_sum"])
def test_methods_of_plain_blocks_leave_embedding_and_head_whole(method: str) -> None:
    inventory = llama_like(tied=False)
    plan = uniform_plan(inventory, method, feasible_range(inventory, method).highest)
    assert set(plan.structures) == {site.name for site in inventory.sites}


def test_a_plan_survives_the_way_through_json() -> None:
    plan = uniform_plan(llama_like(), "kronecker", 1.4)
    assert Plan.from_dict(plan.to_dict()) == plan


def test_an_unknown_method_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownMethod, match="kronecker, svd"):
        feasible_range(llama_like(), "magic")
