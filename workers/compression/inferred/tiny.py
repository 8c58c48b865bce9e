"""A tiny random model of a type that nobody listed, in which every parameter is felt."""

from collections.abc import Mapping
from itertools import product
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from workers.compression.inferred.block import NotUnderstood

VOCABULARY, WIDTH, INNER, BLOCKS, HEADS, GROUPS, HEAD = 96, 32, 48, 3, 4, 2, 8

MOST_PARAMETERS = 20_000_000

SIZES: Mapping[str, int] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WHERE_STATED: Mapping[str, int] = {
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "intermediate_size": INNER,
    "ffn_dim": INNER,
    "sliding_window": 5,
    "rotary_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "dim_model_base": WIDTH,
    "first_k_dense_replace": 1,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}
"""Sizes of a type whose own default is a number."""


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return the config of a tiny model of a type. Raises NotUnderstood where transformers makes none that runs."""
    kind = CONFIG_MAPPING[model_type]
    failures = []
    for attempt in product((BLOCKS, None), (GROUPS, HEADS), (int, int | None)):
        try:
            config = _attempted(kind, *attempt)
            require_tiny(config)
            run(random_model(config))
        except Exception as error:  # noqa: BLE001 - transformers raises anything
            failures.append(error)
        else:
            return config
    raise NotUnderstood(
        f"transformers makes no small model of it that computes logits from tokens ({said(failures[0])})"
    )


def _attempted(kind: type[PreTrainedConfig], blocks: int | None, groups: int, stated: Any) -> PreTrainedConfig:
    """Return a config with the tiny sizes of all fields whose own default is of the type `stated`.

    `blocks` None leaves their number at its default, as lists with an entry for each block may need it.
    """
    defaults = kind().to_dict()
    sizes = {**WHERE_STATED, "num_key_value_heads": groups}
    chosen: dict[str, Any] = dict(SIZES)
    chosen |= {
        field: size for field, size in sizes.items() if field in defaults and isinstance(defaults[field], stated)
    }
    if blocks is not None:
        chosen["num_hidden_layers"] = blocks
    # At 1, nobody would see that something is multiplied by it.
    chosen |= {name: 0.5 for name, value in defaults.items() if name.endswith("_multiplier") and value == 1.0}
    return kind(**chosen)


def require_tiny(config: PreTrainedConfig) -> None:
    """Raise NotUnderstood for a model that is not tiny, because a size of it is called as no other is."""
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MOST_PARAMETERS:
        raise NotUnderstood(f"{parameters:,} parameters remain where all sizes that are known are small")


@torch.no_grad()
def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model of random weights. Raises what transformers raises where it cannot build it."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        # Initialisation leaves biases at zero and norms at one, which would hide what depends on them.
        parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15))
    return model


@torch.no_grad()
def run(model: PreTrainedModel, ids: Tensor | None = None) -> Tensor:
    """Return the model's logits [2, T, V] for token ids, by default `token_ids()`."""
    logits: Tensor = cast("Any", model)(token_ids() if ids is None else ids, use_cache=False).logits
    return logits


def token_ids(length: int = 12) -> Tensor:
    """Return random token ids [2, length] without special tokens."""
    return torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))


def said(error: Exception) -> str:
    """Return the last line of what an exception says, if it is not too long."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:160] if lines else type(error).__name__


def changed(config: PreTrainedConfig, **fields: Any) -> PreTrainedConfig:
    """Return the config with other values of some fields."""
    made: PreTrainedConfig = type(config).from_dict(config.to_dict() | fields)
    return made
