"""What fewer blocks and narrower MLPs store, and what config.json says of them. Torch-free."""

import time
from typing import Any

import pytest

from modelpress.spec.dimensions import (
    UNITS_STEP,
    block_of,
    intermediate_size,
    intermediate_size_for,
    narrowed,
    renumbered,
    resized_config,
    resized_parameters,
    width_range,
)
from modelpress.spec.errors import UnsupportedArchitecture
from modelpress.spec.inventory import Inventory, inventory
from modelpress.spec.ranges import TOLERANCE, RatioOutOfRange
from tests.support.checkpoints import CONFIG, SHAPES


def wide(units: int = 400, blocks: int = 4, width: int = 64, vocabulary: int = 500) -> Inventory:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (units, width) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (width, units), f"{prefix}.input_layernorm.weight": (width,)}
    config = {"model_type": "llama", "tie_word_embeddings": True, "num_hidden_layers": blocks, "hidden_size": width}
    return inventory(config, shapes)


def config_of(**fields: Any) -> dict[str, Any]:
    return {"model_type": "qwen2", "num_hidden_layers": 4, "intermediate_size": 48, **fields}


def test_the_hidden_units_are_those_of_the_weights() -> None:
    assert intermediate_size(inventory(CONFIG, SHAPES)) == CONFIG["intermediate_size"]


def test_removed_blocks_and_units_are_no_longer_counted() -> None:
    assert resized_parameters(wide(), (1, 3), 100) == wide(units=100, blocks=2).total_parameters


@pytest.mark.parametrize(
    ("ratio", "removed"), [(1.05, ()), (1.27, ()), (1.5, ()), (2.0, ()), (1.37, (1,)), (1.5, (1,)), (2.5, (1, 3))]
)
def test_the_target_is_met_within_the_tolerance(ratio: float, removed: tuple[int, ...]) -> None:
    found = wide(units=4000)
    budget = found.total_parameters / ratio
    stored = resized_parameters(found, removed, intermediate_size_for(found, ratio, removed))
    assert budget * (1 - TOLERANCE) <= stored <= budget


def test_the_size_is_a_round_one_where_the_target_allows_it() -> None:
    assert intermediate_size_for(wide(units=4000), 1.27) % UNITS_STEP == 0
    assert intermediate_size_for(wide(units=100), 1.27) % UNITS_STEP != 0


def test_both_ends_of_the_range_can_be_reached_and_nothing_beyond() -> None:
    found = wide()
    feasible = width_range(found)
    assert intermediate_size_for(found, feasible.lowest) == 399
    assert intermediate_size_for(found, feasible.highest) == 100
    for ratio in (feasible.lowest - 0.001, feasible.highest + 0.001):
        with pytest.raises(RatioOutOfRange, match="narrower MLPs reach ratios from"):
            intermediate_size_for(found, ratio)


def test_lists_with_an_entry_for_each_block_keep_those_of_the_blocks_that_remain() -> None:
    config = config_of(layer_types=["full", "sliding", "full", "sliding"], eos_token_id=[1, 2, 3, 4])
    resized = resized_config(config, (1, 2), 4)
    assert resized["num_hidden_layers"] == 2
    assert resized["layer_types"] == ["sliding", "full"]
    assert resized["eos_token_id"] == [1, 2, 3, 4]


def test_the_last_full_layer_moves_with_the_blocks() -> None:
    assert resized_config(config_of(max_window_layers=3), (0, 3), 4)["max_window_layers"] == 1


@pytest.mark.parametrize(
    ("model_type", "blocks_field", "width_field"),
    [
        ("gpt2", "n_layer", "n_inner"),
        ("opt", "num_hidden_layers", "ffn_dim"),
        ("llama", "num_hidden_layers", "intermediate_size"),
    ],
)
def test_each_architecture_is_told_in_its_own_words(model_type: str, blocks_field: str, width_field: str) -> None:
    resized = resized_config({"model_type": model_type, "num_hidden_layers": 4}, (0, 2, 3), 4, 24)
    assert resized == {"model_type": model_type, blocks_field: 3, width_field: 24}


def test_a_config_that_scales_by_the_block_number_keeps_all_blocks() -> None:
    config = {"model_type": "gpt2", "n_layer": 4, "scale_attn_by_inverse_layer_idx": True}
    assert resized_config(config, range(4), 4, 24)["n_inner"] == 24
    with pytest.raises(UnsupportedArchitecture, match="scale_attn_by_inverse_layer_idx"):
        resized_config(config, (0, 2), 4)


def test_names_follow_their_blocks() -> None:
    assert renumbered("model.layers.12.mlp.down_proj", "model.layers", (1, 12)) == "model.layers.1.mlp.down_proj"
    assert renumbered("model.norm.weight", "model.layers", (1, 12)) == "model.norm.weight"
    assert block_of("model.layers.12.mlp.down_proj", "model.layers") == 12
    assert block_of("model.layers_norm.weight", "model.layers") is None


def test_as_many_blocks_as_a_model_may_have_are_narrowed_within_seconds() -> None:
    deep = wide(units=8, blocks=2000, width=8, vocabulary=32)
    begun = time.process_time()
    found = narrowed(deep, 4)
    assert time.process_time() - begun < 10.0
    assert (intermediate_size(found), found.total_parameters) == (4, resized_parameters(deep, (), 4))
