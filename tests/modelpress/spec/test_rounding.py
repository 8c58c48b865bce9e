"""The code of every matrix under a budget of bytes."""

from dataclasses import replace

import pytest

from modelpress.spec.codes import CODES
from modelpress.spec.formats import FORMATS, Format
from modelpress.spec.inventory import Inventory
from modelpress.spec.precision import Limits, Precision
from modelpress.spec.rounding import Budget, Costs, choose_codes, fused
from modelpress.spec.sizes import bytes_before, bytes_of, choices, matrices
from tests.support.inventories import llama_like

FORM = FORMATS["safetensors"]
MODEL = llama_like(blocks=3, width=128, hidden=256, vocabulary=300)
FRAGILE = "model.layers.1.mlp.down_proj"


def gated() -> Inventory:
    """Return an inventory with gates, keys and values."""
    plain = llama_like(blocks=2, width=128, hidden=256, vocabulary=300)
    added = []
    for site in plain.sites:
        added.append(site)
        if site.name.endswith("q_proj"):
            added += [replace(site, name=site.name.replace("q_proj", f"{name}_proj")) for name in "kv"]
        if site.name.endswith("up_proj"):
            added.append(replace(site, name=site.name.replace("up_proj", "gate_proj")))
    more = sum(site.out_features * site.in_features for site in added if site not in plain.sites)
    return replace(plain, sites=tuple(added), total_parameters=plain.total_parameters + more)


LLAMA = gated()


def costs(inventory: Inventory, fragile: str = "") -> Costs:
    """Return costs that double with each bit less, a thousandfold at the site `fragile`."""
    return {
        site.name: {
            code.name: 2.0**-code.bits_per_weight * (1000 if site.name == fragile else 1)
            for code in choices(FORM, inventory, site, Limits())
        }
        for site in matrices(inventory)
    }


def stored(codes: dict[str, str]) -> int:
    return bytes_of(MODEL, lambda site: CODES[codes[site.name]] if site.name in codes else None)


@pytest.mark.parametrize("ratio", [1.2, 1.9, 2.5, 3.2])
def test_the_budget_is_kept_and_nearly_used(ratio: float) -> None:
    budget = int(bytes_before(MODEL) / ratio)
    size = stored(choose_codes(MODEL, FORM, Limits(), costs(MODEL), Budget(budget)))
    assert size <= budget
    assert size > 0.9 * budget


def test_a_matrix_whose_errors_cost_more_keeps_more_bits() -> None:
    budget = int(bytes_before(MODEL) / 3)
    codes = choose_codes(MODEL, FORM, Limits(), costs(MODEL, FRAGILE), Budget(budget))

    def bits(site: str) -> float:
        return CODES[codes[site]].bits_per_weight if site in codes else 16.0

    assert bits(FRAGILE) > bits("model.layers.0.mlp.down_proj")


@pytest.mark.parametrize(("precision", "most"), [(8, 8), (4, 4)])
def test_no_weight_keeps_more_bits_than_the_precision(precision: Precision, most: int) -> None:
    codes = choose_codes(MODEL, FORM, Limits(precision), costs(MODEL), Budget(10 * bytes_before(MODEL)))
    assert {site.name for site in matrices(MODEL)} == codes.keys()
    assert all(CODES[name].bits <= most for name in codes.values())


def test_a_budget_that_holds_everything_rounds_nothing() -> None:
    assert choose_codes(MODEL, FORM, Limits(), costs(MODEL), Budget(bytes_before(MODEL))) == {}


def test_a_budget_below_the_smallest_codes_gets_the_smallest_codes() -> None:
    codes = choose_codes(MODEL, FORM, Limits(), costs(MODEL), Budget(1))
    assert {CODES[name].bits for name in codes.values()} == {4}


def test_every_matrix_is_in_one_group() -> None:
    names = [site.name for group in fused(MODEL) for site in group]
    assert sorted(names) == sorted(site.name for site in matrices(MODEL))


def test_a_matrix_that_does_not_fit_a_code_gets_the_one_of_fewest_bits_that_it_fits() -> None:
    odd = llama_like(blocks=2, width=128, hidden=48, vocabulary=300)
    codes = choose_codes(odd, FORM, Limits(4), costs(odd), Budget(1))
    assert codes["model.layers.0.mlp.down_proj"] == "int8", "48 weights a row are no whole number of groups of 32"
    assert CODES[codes["model.layers.0.mlp.up_proj"]].bits == 4


def test_queries_keys_and_values_share_a_code_and_so_do_gate_and_up() -> None:
    fragile = costs(LLAMA, "model.layers.0.self_attn.k_proj")
    codes = choose_codes(LLAMA, FORM, Limits(8), fragile, Budget(int(bytes_before(LLAMA) / 3)))
    for block in range(LLAMA.blocks):
        attention = {codes[f"model.layers.{block}.self_attn.{name}_proj"] for name in "qkv"}
        entering = {codes[f"model.layers.{block}.mlp.{name}_proj"] for name in ("gate", "up")}
        assert len(attention) == len(entering) == 1


def test_a_format_that_holds_no_codes_offers_none() -> None:
    dense: Format = FORMATS["dense"]
    assert choices(dense, MODEL, MODEL.embedding, Limits()) == ()


def test_numbers_of_four_bytes_leave_less_to_keep_unrounded() -> None:
    budget = int(bytes_before(MODEL) / 1.3)
    two, four = (choose_codes(MODEL, FORM, Limits(), costs(MODEL), Budget(budget, size)) for size in (2, 4))
    assert len(four) > len(two)


def test_engines_that_join_no_matrices_let_each_have_its_own_code() -> None:
    form, keys = replace(FORM, joins=False), "model.layers.0.self_attn.k_proj"
    fragile = costs(LLAMA, keys)
    least = choose_codes(LLAMA, form, Limits(8), fragile, Budget(1))
    size = bytes_of(LLAMA, lambda site: CODES[least[site.name]])
    codes = choose_codes(LLAMA, form, Limits(8), fragile, Budget(size + 128 * 128))
    assert {site for site, code in codes.items() if CODES[code].bits == 8} == {keys}


def test_embedding_and_head_keep_bits_of_their_own() -> None:
    tables = {LLAMA.embedding.name, *([LLAMA.head.name] if LLAMA.head else [])}
    plain = choose_codes(LLAMA, FORM, Limits(4, 16), costs(LLAMA), Budget(1))
    assert plain and not tables & plain.keys()
    eight = choose_codes(LLAMA, FORM, Limits(4, 8), costs(LLAMA), Budget(10 * bytes_before(LLAMA)))
    assert {CODES[eight[name]].bits for name in tables} == {8}
    assert all(CODES[code].bits <= 4 for name, code in eight.items() if name not in tables)
