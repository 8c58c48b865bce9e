"""Who gets how many parameters, and what a second product must be worth."""

import dataclasses

import torch

from workers.compression.math.allocation import SECOND_PRODUCT, Curve, curve, offered_ranks
from workers.compression.spec.catalog import method
from workers.compression.spec.inventory import Site
from workers.compression.spec.plans import largest_size, smallest_size

KRONECKER = method("kronecker")
LARGE = Site("model.layers.0.mlp.up_proj", 0, 1536, 576, "linear", bias=False)
SMALL = Site("model.layers.0.self_attn.k_proj", 0, 32, 32, "linear", bias=False)
TABLE = Site("model.embed_tokens", None, 49152, 576, "embedding", bias=False)


def test_ranks_of_a_large_matrix_fill_whole_tiles() -> None:
    first, *between, last = offered_ranks(KRONECKER, LARGE).tolist()
    assert (first, last) == (smallest_size(KRONECKER, LARGE), largest_size(KRONECKER, LARGE))
    assert between == list(range(64, 575, 32))


def test_a_small_matrix_has_as_many_ranks_to_choose_from() -> None:
    assert len(offered_ranks(KRONECKER, SMALL)) >= 12


def test_a_site_stays_whole_where_a_factored_one_saves_less_than_a_second_product_costs() -> None:
    points = curve(KRONECKER, LARGE, torch.zeros(576, dtype=torch.float64))
    barely = points.stored[-1] - points.stored < SECOND_PRODUCT
    assert barely[:-1].any()
    costs = points.divergence + 1.0 * points.stored
    costs[:-1] += points.fee
    assert (costs[:-1][barely[:-1]] > costs[-1]).all()
    offered = Curve(points.ranks[barely], points.stored[barely], points.divergence[barely], points.fee)
    assert offered.cheapest(1.0) == len(offered.ranks) - 1
    assert dataclasses.replace(offered, fee=0.0).cheapest(1.0) == 0


def test_the_table_of_tokens_pays_no_fee_since_its_factors_are_read_where_the_table_was() -> None:
    assert curve(KRONECKER, TABLE, torch.zeros(576, dtype=torch.float64)).fee == 0


def test_at_a_high_price_even_a_small_matrix_is_factored_as_far_as_it_may_be() -> None:
    assert curve(KRONECKER, SMALL, torch.ones(32, dtype=torch.float64)).cheapest(1e9) == 0
