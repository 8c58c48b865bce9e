"""Tiny random models of every architecture in the registry, in memory and on disk.

The config of a tiny model follows from the registry alone: transformers maps the common names of sizes to those of the
type. A type that needs more than that has an entry in CHANGES.
"""

from collections.abc import Container, Iterable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from modelpress.spec.architectures import ARCHITECTURES, architecture_named
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel

VOCABULARY, WIDTH, INNER, BLOCKS, POSITIONS = 96, 32, 48, 2, 64
WINDOW = 5  # shorter than the test sequences, so that sliding attention differs from full attention

SIZES: Mapping[str, int] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WHERE_STATED: Mapping[str, int] = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "intermediate_size": INNER,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 40,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "shared_intermediate_size": INNER,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
}
"""Sizes of a type whose own default is a number."""

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "opt": {"word_embed_proj_dim": WIDTH},
    "qwen3": {"tie_word_embeddings": True},
    "gemma3_text": {"sliding_window_pattern": 2},  # by default the first five blocks of six are alike
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"mamba_d_head": 16, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "global_head_dim": 16, "sliding_window": WINDOW},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    "deepseek_v3": {"num_key_value_heads": 4},
    "glm4_moe": {"n_group": 2, "n_routed_experts": 8},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "granitemoe": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    "llama4_text": {"num_experts_per_tok": 1, "no_rope_layer_interval": 2, "attention_chunk_size": WINDOW},
    "granite_swa": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    "hunyuan_v1_dense": {"head_dim": 8, "num_key_value_heads": 2},
    "minicpm3": {"num_key_value_heads": 4, "dim_model_base": WIDTH},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "smollm3": {"no_rope_layer_interval": 2},
    "xglm": {"ffn_dim": INNER},
}
MIXERS: Mapping[str, str] = {
    "lfm2": "conv",
    "granitemoehybrid": "mamba",
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), "linear_attention"),
}
"""Types whose blocks take turns at attention and at another mixer, with its name."""
PATTERNED = ("gemma4_text", "cohere2", "cwm", "exaone4", "olmo3")
"""Types whose blocks take turns at a sliding window."""
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "cohere-normed": ("cohere", {"use_qk_norm": True}),
    "falcon-alibi": ("falcon", {"alibi": True, "parallel_attn": False, "bias": True}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode-ungrouped": ("gpt_bigcode", {"multi_query": False}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "opt-projected": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
}
"""Further models by name: the type, and what is different."""

INFERRED_SAMPLE = ("helium", "hyperclovax", "nanochat", "granite_swa", "gpt_neox_japanese", "minicpm3")
"""Types that are not registered, of different layouts."""

MODELS = (*ARCHITECTURES, *VARIANTS, *(name for name in INFERRED_SAMPLE if name not in ARCHITECTURES))
"""The name of every tiny model."""

SAMPLE = ("gpt2", "gpt_neox", "llama", "llama-tied", "gemma3_text", "opt-projected", "phi3", "granite", "bloom")
"""Models that differ from each other in what the registry can say; `make test` puts these through every battery."""


def sampled(names: Iterable[str], also: Container[str] = ()) -> list[ParameterSet]:
    """Return parameters for a test of `names`; those outside SAMPLE and `also` run in `make test-full` alone."""
    return [pytest.param(name, marks=() if name in SAMPLE or name in also else pytest.mark.full) for name in names]


def tiny_config(name: str, **changes: Any) -> PreTrainedConfig:
    """Return the config of a tiny model of MODELS, with `changes`."""
    model_type, variant = VARIANTS.get(name, (name, {}))
    kind = CONFIG_MAPPING[model_type]
    default = kind().to_dict()
    optional = {architecture_named(model_type).width_field: INNER, **WHERE_STATED}
    stated = {field: size for field, size in optional.items() if field and default.get(field) is not None}
    other = MIXERS.get(model_type, "sliding_attention")
    turns = islice(cycle((other, "full_attention")), changes.get("num_hidden_layers", BLOCKS))
    pattern = {"layer_types": list(turns)} if model_type in (*PATTERNED, *MIXERS) else {}
    config: PreTrainedConfig = kind(
        **{**SIZES, **stated, **pattern, **CHANGES.get(model_type, {}), **variant, **changes}
    )
    return config


@torch.no_grad()
def tiny_model(name: str, **changes: Any) -> PreTrainedModel:
    """Return a tiny model in fp32, the same at every call, in which every parameter is felt."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes)).eval()
    for parameter in model.parameters():
        # Initialisation leaves biases at zero and norms at one, which would hide that they were dropped.
        parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15))
    return model


def save_tiny_model(name: str, directory: Path, **changes: Any) -> PreTrainedModel:
    """Write a tiny model as transformers does, and return it."""
    model = tiny_model(name, **changes)
    model.save_pretrained(directory)
    return model


def open_tiny(name: str, directory: Path, **changes: Any) -> StreamedModel:
    """Write a tiny model, and open it block by block."""
    save_tiny_model(name, directory, **changes)
    return StreamedModel.open(directory)


def initialised(model_type: str, **sizes: Any) -> PreTrainedModel:
    """Return a model as transformers initialises it: with small matrices, so that its logits hardly depend on them."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).eval()
    return model


def token_ids(sequences: int = 2, length: int = 12) -> Tensor:
    """Return random token ids [sequences, length] without special tokens."""
    return torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model: StreamedModel | EditedModel | PreTrainedModel, ids: Tensor | None = None) -> Tensor:
    """Return the logits [N, T, V] of `ids` [N, T], by default `token_ids()`; block by block where the model is."""
    ids = token_ids() if ids is None else ids
    if isinstance(model, PreTrainedModel):
        logits: Tensor = model(ids).logits
        return logits
    hidden = model.hidden(ids)
    for index in model.kept if isinstance(model, EditedModel) else range(model.inventory.blocks):
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    return model.logits(hidden)


def distance(model: StreamedModel | EditedModel, other: StreamedModel | EditedModel) -> float:
    """Return how far the logits of `other` are from the model's, relative to these."""
    ids = token_ids(8, 32)
    expected = logits_of(model, ids)
    return float((logits_of(other, ids) - expected).norm() / expected.norm())
