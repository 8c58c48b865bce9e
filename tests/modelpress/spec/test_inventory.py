"""The inventory of a checkpoint, and the checkpoints that it refuses."""

import subprocess
import sys
from typing import Any

import pytest

from modelpress.spec.errors import AlreadyQuantised, MalformedModel, UnsupportedArchitecture
from modelpress.spec.inventory import inventory

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 4, "num_hidden_layers": 2, "vocab_size": 10}
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 4, "n_layer": 1, "vocab_size": 10}


def llama_tensors(blocks: int = 2) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (10, 4),
        "model.norm.weight": (4,),
        "lm_head.weight": (10, 4),
    }
    for index in range(blocks):
        tensors |= {
            f"model.layers.{index}.mlp.up_proj.weight": (6, 4),
            f"model.layers.{index}.mlp.up_proj.bias": (6,),
            f"model.layers.{index}.norm.weight": (4,),
        }
    return tensors


def gpt2_tensors(prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes = {"wte.weight": (10, 4), "wpe.weight": (8, 4), "h.0.mlp.c_fc.weight": (4, 16), "h.0.mlp.c_fc.bias": (16,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def test_the_matrices_inside_blocks_are_the_sites() -> None:
    sites = inventory(LLAMA, llama_tensors()).sites
    assert [(site.name, site.block) for site in sites] == [
        ("model.layers.0.mlp.up_proj", 0),
        ("model.layers.1.mlp.up_proj", 1),
    ]
    assert (sites[0].out_features, sites[0].in_features, sites[0].bias) == (6, 4, True)


def test_conv1d_stores_the_matrix_the_other_way_round() -> None:
    site = inventory(GPT2, gpt2_tensors()).sites[0]
    assert (site.out_features, site.in_features, site.layout) == (16, 4, "conv1d")


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_names_may_lack_the_prefix_of_the_base_model(prefix: str) -> None:
    assert inventory(GPT2, gpt2_tensors(prefix)).sites[0].name == "transformer.h.0.mlp.c_fc"


def test_a_head_of_its_own_is_counted() -> None:
    found = inventory(LLAMA, llama_tensors())
    assert found.head is not None
    assert found.total_parameters == 2 * 40 + 4 + 2 * (24 + 6 + 4)


def test_a_tied_head_is_counted_once_even_where_the_file_repeats_it() -> None:
    found = inventory(LLAMA | {"tie_word_embeddings": True}, llama_tensors())
    assert found.head is None
    assert found.total_parameters == 40 + 4 + 2 * (24 + 6 + 4)


def test_tying_follows_the_default_of_the_type_where_the_config_is_silent() -> None:
    assert inventory(GPT2, gpt2_tensors()).head is None
    assert inventory(LLAMA, llama_tensors()).head is not None


def test_masks_that_older_releases_stored_are_no_parameters() -> None:
    plain = inventory(GPT2, gpt2_tensors()).total_parameters
    assert inventory(GPT2, gpt2_tensors() | {"h.0.attn.bias": (1, 1, 8, 8)}).total_parameters == plain


def test_a_head_goes_by_its_older_name_too() -> None:
    tensors = {"gpt_neox.embed_in.weight": (10, 4), "gpt_neox.layers.0.x.weight": (4, 4), "embed_out.weight": (10, 4)}
    found = inventory({"model_type": "gpt_neox"}, tensors)
    assert found.head is not None
    assert found.head.name == "lm_head"


def test_an_unsupported_type_is_named_and_the_supported_are_listed() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"'mamba'.*gpt2, .*llama, "):
        inventory({"model_type": "mamba"}, {})


@pytest.mark.parametrize(
    ("config", "extra"),
    [
        ({"model_type": "qwen3_5_text"}, "mtp.layers.0.mlp.up_proj.weight"),
        ({"model_type": "deepseek_v3", "num_nextn_predict_layers": 1}, "model.layers.2.eh_proj.weight"),
    ],
)
def test_modules_that_predict_further_tokens_are_left_out_as_transformers_leaves_them_out(
    config: dict[str, Any], extra: str
) -> None:
    config = {**config, "num_hidden_layers": 2, "tie_word_embeddings": True}
    tensors = llama_tensors(blocks=2)
    assert inventory(config, {**tensors, extra: (6, 4)}) == inventory(config, tensors)


def test_the_language_model_inside_another_model_is_pointed_out() -> None:
    with pytest.raises(UnsupportedArchitecture, match="of the type 'gemma3_text', is supported"):
        inventory({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, {})


@pytest.mark.parametrize("fields", [{}, {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2}])
def test_what_an_entry_refuses_is_named(fields: dict[str, int]) -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"in which (hidden_size_per_layer_input|num_kv_shared_layers)"):
        inventory({"model_type": "gemma4_text", **fields}, {})


@pytest.mark.parametrize(
    ("config", "tensors", "complaint"),
    [
        ({"vocab_size": 11}, {}, "vocabulary of 11"),
        ({"hidden_size": 5}, {}, "width of 5"),
        ({"num_hidden_layers": 3}, {}, "3 blocks, but the weights hold 2"),
        ({"vocab_size": "many"}, {}, "positive whole number"),
        ({}, {"model.layers.3.norm.weight": (4,)}, "without gaps"),
        ({}, {f"model.layers.{block}.norm.weight": (4,) for block in range(3000)}, "3000 blocks; a model has at most"),
        ({}, {"model.layers.1.extra.weight": (4, 4)}, "do not hold the same tensors"),
        ({}, {"model.embed_tokens.weight": (40,)}, "a matrix is expected"),
        ({}, {"model.norm.weight": (0,)}, "empty"),
        ({}, {"norm.weight": (4,)}, "the same weight"),
    ],
)
def test_contradictions_are_refused(
    config: dict[str, Any], tensors: dict[str, tuple[int, ...]], complaint: str
) -> None:
    with pytest.raises(MalformedModel, match=complaint):
        inventory(LLAMA | config, llama_tensors() | tensors)


def test_quantised_weights_are_refused() -> None:
    with pytest.raises(AlreadyQuantised, match="are quantised"):
        inventory(LLAMA | {"quantization_config": {"quant_method": "gptq"}}, llama_tensors())


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_missing_table_is_refused(name: str) -> None:
    tensors = llama_tensors()
    del tensors[name]
    with pytest.raises(MalformedModel, match=f"{name} is missing"):
        inventory(LLAMA, tensors)


def test_nothing_here_needs_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import modelpress.spec.inventory"
    subprocess.run([sys.executable, "-c", code], check=True)
