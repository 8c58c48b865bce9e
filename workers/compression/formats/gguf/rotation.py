"""Rotary positions as GGUF files state them: base, scaling, and tensors of divisors of the frequencies."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from modelpress.spec.gguf import GgufForm
from workers.compression.formats.gguf.heads import Heads

_LONG = ("longrope", "su")
_PLAIN = ("default", None)
_SCALED = {"linear": "linear", "yarn": "yarn", "longrope": "longrope", "su": "longrope"}
_YARN = {
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
_UNKNOWN_IN_YARN = ("mscale", "mscale_all_dim", "attention_factor", "truncate", "llama_4_scaling_beta")


def rotary(config: PreTrainedConfig, form: GgufForm) -> dict[str, Any]:
    """Return the metadata of rotary positions, by key behind the architecture's name.

    Raises ValueError for a scaling that llama.cpp does not have.
    """
    stated = _parameters(config)
    kind = stated.get("rope_type", stated.get("type"))
    found: dict[str, Any] = {
        "rope.dimension_count": Heads.of(config).rotated,
        "rope.freq_base": float(stated["rope_theta"]),
    }
    local = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention")
    if local is not None:
        found["rope.freq_base_swa"] = float(local["rope_theta"])
    if kind in _SCALED:
        found["rope.scaling.type"] = _SCALED[kind]
        found["rope.scaling.factor"] = float(stated.get("factor") or 1.0)
        original = stated.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if original:
            found["rope.scaling.original_context_length"] = int(original)
    elif kind not in (*_PLAIN, "llama3") or (kind == "llama3" and not form.divided):
        raise ValueError(
            f"llama.cpp has no rotary positions of the kind {kind!r} in its architecture {form.architecture!r}"
        )
    if kind == "yarn":
        if unknown := [name for name in _UNKNOWN_IN_YARN if stated.get(name) is not None]:
            raise ValueError(f"llama.cpp's rotary positions of the kind 'yarn' have no {unknown[0]}")
        found |= {key: float(stated[name]) for name, key in _YARN.items() if stated.get(name) is not None}
    if kind in _LONG:
        found["rope.scaling.attn_factor"] = _attention_factor(config, stated)
    return found


def divisors(config: PreTrainedConfig) -> Mapping[str, Tensor]:
    """Return the tensors by which llama.cpp divides the frequencies, by name; none where they are not scaled so."""
    stated = _parameters(config)
    kind = stated.get("rope_type", stated.get("type"))
    if kind == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = stated["rope_theta"] ** -(torch.arange(0, 2 * len(scaled), 2, dtype=torch.float32) / (2 * len(scaled)))
        return {"rope_freqs": plain / scaled}
    if kind in _LONG:
        return {
            "rope_factors_long": torch.tensor(stated["long_factor"], dtype=torch.float32),
            "rope_factors_short": torch.tensor(stated["short_factor"], dtype=torch.float32),
        }
    return {}


def _parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the parameters of full attention, as transformers 5 names them."""
    stated = getattr(config, "rope_parameters", None)
    if stated is None:
        stated = {
            "rope_theta": getattr(config, "rope_theta", 10_000.0),
            **(getattr(config, "rope_scaling", None) or {}),
        }
    found: dict[str, Any] = stated.get("full_attention", stated)
    return found


def _attention_factor(config: PreTrainedConfig, stated: Mapping[str, Any]) -> float:
    if stated.get("attention_factor") is not None:
        return float(stated["attention_factor"])
    original = stated.get("original_max_position_embeddings") or config.original_max_position_embeddings
    scale = config.max_position_embeddings / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
