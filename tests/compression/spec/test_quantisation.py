"""Which grid each matrix gets, and what is refused before anything is computed."""

import pytest

from workers.compression.spec.inventory import Inventory, inventory
from workers.compression.spec.quantisation import Grid, NotQuantisable, grids


def llama(hidden: int, inner: int) -> Inventory:
    block = {
        "self_attn.q_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (8, hidden), "model.norm.weight": (hidden,)}
    shapes |= {f"model.layers.0.{name}.weight": shape for name, shape in block.items()}
    return inventory({"model_type": "llama", "tie_word_embeddings": True}, shapes)


def test_int8_has_one_scale_for_each_row_whatever_the_width() -> None:
    assert set(grids(llama(hidden=6, inner=10), "int8").values()) == {Grid(8)}


def test_int4_has_a_scale_for_each_group_of_a_row() -> None:
    assert set(grids(llama(hidden=576, inner=1536), "int4").values()) == {Grid(4, 32)}


def test_int4_leaves_a_width_that_groups_do_not_divide_at_eight_bits() -> None:
    found = grids(llama(hidden=64, inner=100), "int4")
    assert found["model.layers.0.mlp.down_proj"] == Grid(8)
    assert found["model.layers.0.mlp.up_proj"] == Grid(4, 32)


def test_int4_needs_a_width_that_groups_divide() -> None:
    with pytest.raises(NotQuantisable, match="multiple of 32"):
        grids(llama(hidden=30, inner=50), "int4")


def test_embedding_and_head_have_no_grid() -> None:
    assert all(name.startswith("model.layers.") for name in grids(llama(32, 64), "int8"))


def test_matrices_stored_transposed_are_refused() -> None:
    shapes = {"transformer.wte.weight": (8, 32), "transformer.h.0.attn.c_attn.weight": (32, 96)}
    with pytest.raises(NotQuantisable, match="gpt2"):
        grids(inventory({"model_type": "gpt2"}, shapes), "int8")
