"""Which numbers of key/value heads a model can have, and what it then stores. Torch-free."""

from typing import Any

import pytest

from modelpress.spec.heads import (
    Heads,
    HeadsDoNotFit,
    feasible_key_value_heads,
    heads_of,
    regrouped,
    stated_heads,
)
from modelpress.spec.inventory import Inventory, inventory
from tests.support.checkpoints import CONFIG, SHAPES

SIZE, BLOCKS = 16, 2


def grouped(
    model_type: str = "qwen2", key_values: int = 4, shared_by: int = 3, width: int = 64, **fields: Any
) -> Inventory:
    """A model with biases where Qwen2 has them."""
    queries, narrow = key_values * shared_by * SIZE, key_values * SIZE
    block: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (80, width),
        "mlp.up_proj.weight": (80, width),
        "mlp.down_proj.weight": (width, 80),
    }
    for name in ("self_attn.k_proj", "self_attn.v_proj"):
        block |= {f"{name}.weight": (narrow, width), f"{name}.bias": (narrow,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (100, width)}
    shapes |= {f"model.layers.{number}.{name}": shape for number in range(BLOCKS) for name, shape in block.items()}
    config = {
        "model_type": model_type,
        "num_attention_heads": key_values * shared_by,
        "hidden_size": width,
        "tie_word_embeddings": True,
        **fields,
    }
    return inventory(config, shapes)


def test_the_heads_are_those_of_the_weights() -> None:
    assert heads_of(grouped()) == Heads(queries=12, key_values=4, size=SIZE)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_groups_store_what_a_model_made_that_small_stores(count: int) -> None:
    assert regrouped(grouped(), count) == grouped(key_values=count)


def test_where_no_heads_share_each_is_a_group() -> None:
    assert heads_of(regrouped(grouped(shared_by=1), 2)) == Heads(queries=2, key_values=2, size=SIZE)


def test_a_config_that_divides_the_width_by_the_heads_narrows_the_choice() -> None:
    assert feasible_key_value_heads(grouped("qwen2", shared_by=2)) == (1, 2, 3)
    assert feasible_key_value_heads(grouped("llama", shared_by=2)) == (1, 2)


@pytest.mark.parametrize("count", [0, 3, 4, 9])
def test_a_number_that_the_model_cannot_have_is_refused_with_those_that_it_can(count: int) -> None:
    with pytest.raises(HeadsDoNotFit, match=f"can have 1 or 2 key/value heads; {count} were asked for"):
        regrouped(grouped("llama", shared_by=2), count)


def test_the_last_key_value_head_stays() -> None:
    with pytest.raises(HeadsDoNotFit, match="none of the model's 1 key/value heads can be removed"):
        regrouped(inventory(CONFIG, SHAPES), 1)


@pytest.mark.parametrize(
    "found",
    [
        grouped("phi"),
        grouped(num_attention_heads=None),
        grouped(num_attention_heads=7),
        grouped(width=64, shared_by=2, num_attention_heads=3),
    ],
)
def test_where_config_and_weights_do_not_tell_a_heads_size_attention_stays(found: Inventory) -> None:
    assert stated_heads(found) is None
    with pytest.raises(HeadsDoNotFit, match="cannot state fewer attention heads"):
        feasible_key_value_heads(found)
