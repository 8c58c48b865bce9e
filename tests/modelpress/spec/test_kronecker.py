"""The method `kronecker`: which sums a site may take, and that plans follow what was measured."""

from collections.abc import Mapping
from typing import Any

import pytest

from modelpress.spec.families import KroneckerFamily, Tile, tables_of
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.methods import SiteErrors
from modelpress.spec.methods.kronecker import KRONECKER, KroneckerOptions
from modelpress.spec.ranges import TOLERANCE
from modelpress.spec.steps import Factor
from modelpress.spec.structures import Kronecker
from tests.support.inventories import llama_like

SITE = Site("model.layers.0.mlp.up_proj", 0, 64, 32, "linear", bias=False)
HIDDEN = Site("model.layers.0.mlp.gate_proj", 0, 64, 32, "linear", bias=False, free_outputs=True)
TABLE = Site("model.embed_tokens", None, 500, 64, "embedding", bias=False)
ODD = Site("model.layers.0.mlp.down_proj", 0, 63, 32, "linear", bias=False)


def inventory() -> Inventory:
    return llama_like(blocks=3, width=64, hidden=256, vocabulary=500)


def flat_errors(contents: Inventory, cost: Mapping[str, float] | None = None) -> dict[str, SiteErrors]:
    """Errors that fall evenly with the numbers stored, by whichever tile, times what a site costs."""
    family = KroneckerFamily()
    return {
        site.name: SiteErrors(
            (),
            {
                str(tile): [
                    (cost or {}).get(site.name, 1.0) * (1 - terms / tile.entries)
                    for terms in range(family.most_terms(tile) + 1)
                ]
                for tile in family.tiles(site)
            },
        )
        for site in (*contents.sites, *tables_of(contents))
    }


def planned(ratio: float, errors: Mapping[str, SiteErrors], **options: Any) -> Mapping[str, Kronecker]:
    step = KRONECKER.plan(inventory(), ratio, KroneckerOptions(**options), errors).step(Factor)
    assert step is not None
    return {name: form for name, form in step.structures.items() if isinstance(form, Kronecker)}


def test_the_sums_of_a_site_are_ordered_by_what_they_store() -> None:
    sums = KroneckerFamily().sums(SITE)
    stored = [form.parameters(64, 32) for form in sums]
    assert stored == sorted(stored)
    assert max(stored) < 0.9 * 64 * 32


def test_tiles_divide_their_matrix_and_are_smaller_than_what_they_are_multiplied_with() -> None:
    assert KroneckerFamily().tiles(SITE) == (Tile(4, 4),)
    assert KroneckerFamily().tiles(ODD) == ()
    assert KroneckerFamily().tiles(TABLE) == (Tile(1, 16), Tile(1, 64))


def test_a_table_has_no_tile_across_tokens_and_no_order_of_them() -> None:
    for form in KroneckerFamily().sums(TABLE):
        assert (form.out_shape, form.permute_in, form.permute_out) == ((500, 1), True, False)


def test_the_order_of_hidden_units_is_folded_and_stores_nothing() -> None:
    folded, stored = (KroneckerFamily().sum(site, Tile(4, 4), 5) for site in (HIDDEN, SITE))
    assert (folded.folded, folded.permute_out) == (True, False)
    assert stored.parameters(64, 32) - folded.parameters(64, 32) == 64


def test_without_permutations_no_order_is_stored_or_folded() -> None:
    for form in planned(1.5, flat_errors(inventory()), permutations="none").values():
        assert not (form.permute_in or form.permute_out or form.folded)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_plan_meets_its_target(share: float) -> None:
    feasible = KRONECKER.range(inventory(), KroneckerOptions())
    target = feasible.lowest + share * (feasible.highest - feasible.lowest)
    plan = KRONECKER.plan(inventory(), target, KroneckerOptions(), flat_errors(inventory()))
    assert plan.ratio == pytest.approx(target, rel=2 * TOLERANCE)


def test_a_site_that_costs_more_keeps_more() -> None:
    name = "model.layers.1.mlp.up_proj"
    least, most = (planned(2.5, flat_errors(inventory(), {name: cost})).get(name) for cost in (0.2, 1.1))
    assert least is not None
    assert most is None or most.terms > least.terms


def test_each_site_takes_the_tile_that_costs_it_least() -> None:
    errors = flat_errors(inventory())
    name = "model.layers.0.mlp.down_proj"
    for better, worse in (("4x4", "4x16"), ("4x16", "4x4")):
        tiles = {better: errors[name].tiles[better], worse: [2 * each for each in errors[name].tiles[worse]]}
        form = planned(3.0, {**errors, name: SiteErrors((), tiles)})[name]
        assert f"{form.out_shape[1]}x{form.in_shape[1]}" == better
