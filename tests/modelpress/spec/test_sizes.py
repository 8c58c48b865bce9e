"""How structure and bits share in reaching a ratio of bytes, and which ratios are promised."""

from dataclasses import replace

import pytest

from modelpress.spec.codes import CODES
from modelpress.spec.dimensions import narrowed
from modelpress.spec.formats import FORMATS
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import METHODS, MethodOptions, planner_of
from modelpress.spec.precision import Limits, Precision
from modelpress.spec.ranges import RatioOutOfRange
from modelpress.spec.sizes import (
    Candidate,
    Wanted,
    bytes_before,
    bytes_of,
    candidates,
    choices,
    matrices,
    reachable,
)
from modelpress.spec.steps import Narrow
from tests.support.inventories import llama_like

LARGE = llama_like(blocks=12, width=512, hidden=2048, vocabulary=4000)


def wanted(ratio: float, precision: Precision = "auto", *formats: str) -> Wanted:
    return Wanted(ratio, precision, tuple(FORMATS[name] for name in formats or ("safetensors",)))


def ways(method: str, ratio: float, precision: Precision = "auto", inventory: Inventory = LARGE) -> list[Candidate]:
    return list(candidates(inventory, options(method), wanted(ratio, precision)))


def options(method: str) -> MethodOptions:
    found: MethodOptions = METHODS[method].options()
    return found


def test_bytes_before_are_those_of_sixteen_bits_a_number() -> None:
    assert bytes_before(LARGE) == 2 * LARGE.total_parameters
    assert bytes_of(LARGE, lambda site: None) == bytes_before(LARGE)


def test_bytes_after_are_those_of_the_codes_and_of_what_stays_plain() -> None:
    embedding = LARGE.embedding
    code = CODES["int8"]
    size = bytes_of(LARGE, lambda site: code if site == embedding else None)
    assert bytes_before(LARGE) - size == 2 * 4000 * 512 - code.bytes(4000, 512)


def test_embedding_and_an_untied_head_are_matrices_like_those_of_the_blocks() -> None:
    names = {site.name for site in matrices(llama_like(tied=False))}
    assert {"model.embed_tokens", "lm_head", "model.layers.0.mlp.up_proj"} <= names


@pytest.mark.parametrize("ratio", [1.05, 1.3, 2.0, 3.0])
def test_auto_reaches_a_low_ratio_by_bits_alone(ratio: float) -> None:
    assert ways("auto", ratio) == [Candidate(options("quantisation"), 1.0, "auto")]


def test_auto_takes_away_structure_only_where_four_bits_do_not_suffice() -> None:
    (found,) = ways("auto", 5.0)
    assert found.method.name == "width"
    assert 1 < found.structure < 5.0 / 3


@pytest.mark.parametrize("method", ["low_rank", "width", "fusion"])
def test_a_named_method_rounds_nothing_while_it_reaches_the_ratio(method: str) -> None:
    assert ways(method, 1.3) == [Candidate(options(method), 1.3, 16)]


def test_a_named_method_rounds_beyond_its_own_range() -> None:
    (way,) = ways("width", 4.0)
    assert way.method.name == "width" and way.rounds
    assert 1 < way.structure < 4.0


def test_sixteen_bits_are_structure_alone() -> None:
    assert all(not way.rounds and way.structure == 1.3 for way in ways("auto", 1.3, 16))


def test_structure_leaves_what_the_codes_of_fewest_bits_hold_in_the_budget() -> None:
    (way,) = ways("width", 5.0)
    step = planner_of(way.method).plan(LARGE, way.structure, way.method, {}).step(Narrow)
    assert step is not None and step.intermediate_size is not None
    left, form = narrowed(LARGE, step.intermediate_size), FORMATS["safetensors"]
    smallest = bytes_of(left, lambda site: choices(form, left, site, Limits())[-1])
    assert bytes_before(LARGE) / smallest >= 5.0


def test_a_narrowed_mlp_has_a_width_that_kernels_take() -> None:
    (way,) = ways("width", 4.0)
    narrow = METHODS["width"].plan(LARGE, way.structure, options("width"), {}).steps[0]
    assert narrow.intermediate_size % 64 == 0


@pytest.mark.parametrize("precision", ["auto", 8, 4])
@pytest.mark.parametrize("method", ["auto", "quantisation", "width", "fusion"])
def test_every_ratio_of_the_promised_range_has_a_way(method: str, precision: Precision) -> None:
    reached = reachable(LARGE, options(method), wanted(1.0, precision))
    for step in range(1, 20):
        ratio = reached.lowest + (reached.highest - reached.lowest) * step / 20
        assert ways(method, ratio, precision), ratio


def test_fewer_bits_reach_higher_ratios() -> None:
    highest = [reachable(LARGE, options("width"), wanted(1.0, precision)).highest for precision in (16, 8)]
    assert highest[0] < highest[1]


@pytest.mark.parametrize(("method", "precision"), [("quantisation", 16), ("low_rank", 8)])
def test_what_no_format_can_hold_is_refused(method: str, precision: Precision) -> None:
    with pytest.raises(RatioOutOfRange, match=f"cannot leave {precision} bits"):
        reachable(LARGE, options(method), wanted(1.0, precision))


def test_a_model_whose_matrices_are_stored_transposed_is_not_rounded() -> None:
    sites = tuple(replace(site, layout="conv1d") for site in LARGE.sites)
    transposed = replace(LARGE, sites=sites)
    reached = reachable(transposed, options("auto"), wanted(1.0, "auto"))
    assert reached.highest == pytest.approx(reachable(transposed, options("auto"), wanted(1.0, 16)).highest)


def test_an_embedding_of_16_bits_leaves_less_to_reach() -> None:
    rounded = wanted(1.0)
    plain = replace(rounded, embedding_precision=16)
    reached = [reachable(LARGE, options("quantisation"), each).highest for each in (rounded, plain)]
    assert 1 < reached[1] < reached[0]
