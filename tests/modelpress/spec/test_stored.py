"""What headers and config.json show before any number is read."""

from pathlib import Path
from typing import Any

import pytest

from modelpress.spec.errors import MalformedModel
from modelpress.spec.headers import StoredTensor
from modelpress.spec.inventory import inventory
from modelpress.spec.stored import check_agreement, check_kinds
from tests.support.checkpoints import CONFIG, SHAPES

UP = "model.layers.1.mlp.up_proj.weight"


def stored() -> dict[str, StoredTensor]:
    return {name: StoredTensor(Path("x"), "F32", shape, 0) for name, shape in SHAPES.items()}


def agree(changes: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None) -> None:
    config, tensors = CONFIG | changes, SHAPES | (shapes or {})
    check_agreement(config, tensors, inventory(config, tensors))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "BOOL"])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype: str) -> None:
    tensors = stored() | {UP: StoredTensor(Path("x"), dtype, (12, 8), 96)}
    with pytest.raises(MalformedModel, match=f"{UP} is stored as {dtype}"):
        check_kinds(CONFIG, tensors)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_floating_weights_of_16_bits_or_more_pass(dtype: str) -> None:
    check_kinds(CONFIG, stored() | {UP: StoredTensor(Path("x"), dtype, (12, 8), 96)})


def test_integers_of_old_buffers_pass() -> None:
    check_kinds(CONFIG, stored() | {"model.layers.0.attn.bias": StoredTensor(Path("x"), "U8", (1,), 1)})


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("model.layers.0.mlp.up_proj.qweight", "quantised"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "quantised"),
        ("model.layers.0.mlp.up_proj.SCB", "quantised"),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "quantised"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "adapter"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", "adapter"),
        ("v_head.summary.weight", "head"),
        ("score.weight", "head"),
        ("mtp.layers.0.weight", "several tokens"),
        ("module.model.norm.weight", "wrapper"),
        ("_orig_mod.model.norm.weight", "wrapper"),
    ],
)
def test_a_tensor_that_is_no_plain_weight_is_named_with_what_it_is(name: str, word: str) -> None:
    with pytest.raises(MalformedModel, match=f"(?s){name}.*{word}|{word}.*{name}"):
        check_kinds(CONFIG, stored() | {name: StoredTensor(Path("x"), "F32", (1,), 4)})


def test_a_model_whose_sizes_agree_passes() -> None:
    agree({"pad_token_id": 31, "head_dim": 4, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"intermediate_size": 16}, "intermediate_size"),
        ({"intermediate_size": 10**12}, "intermediate_size"),
        ({"num_attention_heads": 4}, "heads"),
        ({"num_attention_heads": 3}, "divide"),
        ({"num_attention_heads": 10**9}, "divide"),
        ({"num_attention_heads": "2"}, "num_attention_heads"),
        ({"num_key_value_heads": 2}, "heads"),
        ({"num_attention_heads": 2, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 10**11}, "heads"),
        ({"pad_token_id": 32}, "pad_token_id 32"),
        ({"pad_token_id": "0"}, "pad_token_id"),
        ({"hidden_act": "evil"}, "hidden_act"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused_by_its_field(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MalformedModel, match=complaint):
        agree(changes)


@pytest.mark.parametrize("padding", [None, -1, 0, 31])
def test_padding_within_the_table_or_counted_from_its_end_passes(padding: int | None) -> None:
    agree({"pad_token_id": padding})


@pytest.mark.parametrize("module", ["self_attn.o_proj", "self_attn.k_proj", "mlp.down_proj", "mlp.gate_proj"])
def test_a_matrix_that_no_block_has_is_named(module: str) -> None:
    tensors = {name: shape for name, shape in SHAPES.items() if module not in name}
    with pytest.raises(MalformedModel, match=f"lack the matrix {module}.weight"):
        check_agreement(CONFIG, tensors, inventory(CONFIG, tensors))


def test_blocks_of_different_widths_are_refused() -> None:
    uneven = {f"model.layers.1.mlp.{name}.weight": (6, 8) for name in ("gate_proj", "up_proj")}
    with pytest.raises(MalformedModel, match="block 1"):
        agree({}, {**uneven, "model.layers.1.mlp.down_proj.weight": (8, 6)})
