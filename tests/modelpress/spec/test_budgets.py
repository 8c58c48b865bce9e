"""Who gets how many parameters: the same fraction everywhere, or by measured error, a second product included."""

import dataclasses

import pytest

from modelpress.spec.budgets import (
    SECOND_PRODUCT,
    Curve,
    Point,
    allocate,
    offered_ranks,
    rank_curve,
    uniform_structures,
)
from modelpress.spec.families import Family, LowRankFamily, stored_parameters
from modelpress.spec.inventory import Site
from modelpress.spec.structures import LowRank, Pivoted
from tests.support.inventories import llama_like

PIVOTED = LowRankFamily(factors_embedding=True, pivoted=True)
PLAIN = LowRankFamily(factors_embedding=False, pivoted=False)
LARGE = Site("model.layers.0.mlp.up_proj", 0, 1536, 576, "linear", bias=False)
SMALL = Site("model.layers.0.self_attn.k_proj", 0, 32, 32, "linear", bias=False)
TABLE = Site("model.embed_tokens", None, 49152, 576, "embedding", bias=False)


def test_ranks_of_a_large_matrix_fill_whole_tiles() -> None:
    first, *between, last = offered_ranks(PIVOTED, LARGE)
    assert (first, last) == (PIVOTED.smallest(LARGE), PIVOTED.largest(LARGE))
    assert between == list(range(64, 575, 32))


def test_a_small_matrix_has_as_many_ranks_to_choose_from() -> None:
    assert len(offered_ranks(PIVOTED, SMALL)) >= 12


def test_a_site_stays_whole_where_a_factored_one_saves_less_than_a_second_product_costs() -> None:
    curve = rank_curve(PIVOTED, LARGE, [0.0] * 576)
    whole = curve.points[-1]
    barely = tuple(point for point in curve.points if 0 < whole.stored - point.stored < SECOND_PRODUCT)
    assert barely
    offered = Curve((*barely, whole), curve.fee)
    assert offered.points[offered.cheapest(1.0)] == whole
    assert dataclasses.replace(offered, fee=0.0).cheapest(1.0) == 0


def test_the_table_of_tokens_pays_no_fee_since_its_factors_are_read_where_the_table_was() -> None:
    assert rank_curve(PIVOTED, TABLE, [0.0] * 576).fee == 0


def test_at_a_high_price_even_a_small_matrix_is_factored_as_far_as_it_may_be() -> None:
    assert rank_curve(PIVOTED, SMALL, [1.0] * 32).cheapest(1e9) == 0


def test_a_rank_costs_what_the_singular_values_beyond_it_do() -> None:
    curve = rank_curve(PIVOTED, SMALL, [float(32 - rank) for rank in range(32)])
    for point in curve.points[:-1]:
        assert isinstance(point.form, Pivoted)
        assert point.divergence == sum(range(1, 33 - point.form.rank))


def test_the_budget_goes_where_a_number_buys_most() -> None:
    def curve(cost: float) -> Curve:
        factored = (Point(LowRank(rank), 10 * rank, cost * (10 - rank)) for rank in range(1, 10))
        return Curve((*factored, Point(None, 100, 0.0)))

    found = allocate({"cheap": curve(1.0), "dear": curve(5.0)}, budget=110)
    assert found == {"cheap": LowRank(1)}


@pytest.mark.parametrize("family", [PIVOTED, PLAIN])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("tied", [True, False])
def test_uniform_structures_keep_to_their_budget(family: Family, share: float, tied: bool) -> None:
    inventory = llama_like(width=192, hidden=512, vocabulary=1000, tied=tied)
    feasible = family.range(inventory)
    budget = inventory.total_parameters / (feasible.lowest + share * (feasible.highest - feasible.lowest))
    found = stored_parameters(inventory, uniform_structures(inventory, family, round(budget)))
    assert 0.995 * budget < found <= round(budget)


def test_the_embedding_stays_whole_while_the_blocks_reach_the_target() -> None:
    inventory = llama_like(width=192, hidden=512, vocabulary=1000)
    assert inventory.embedding.name not in uniform_structures(inventory, PIVOTED, inventory.total_parameters * 10 // 13)
    assert inventory.embedding.name in uniform_structures(inventory, PIVOTED, inventory.total_parameters // 5)


def test_a_head_of_its_own_gives_as_the_embedding_does() -> None:
    inventory = llama_like(vocabulary=1000, tied=False)
    budget = round(inventory.total_parameters / PIVOTED.range(inventory).highest)
    found = uniform_structures(inventory, PIVOTED, budget)
    assert found["lm_head"] == found[inventory.embedding.name]
    assert stored_parameters(inventory, found) < budget + 2


def test_a_family_of_plain_blocks_leaves_embedding_and_head_whole() -> None:
    inventory = llama_like(tied=False)
    budget = round(inventory.total_parameters / PLAIN.range(inventory).highest)
    assert set(uniform_structures(inventory, PLAIN, budget)) == {site.name for site in inventory.sites}
