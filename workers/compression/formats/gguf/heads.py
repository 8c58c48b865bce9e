"""The attention heads that a config states."""

from dataclasses import dataclass

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Heads:
    """The number of query heads and of key/value heads, their width `size`, and how much of it is `rotated`."""

    queries: int
    key_values: int
    size: int
    rotated: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Heads":
        """Return the heads that a config states."""
        queries = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // queries
        return cls(queries, _key_values(config) or queries, size, int(size * _rotated_part(config)))


def _key_values(config: PreTrainedConfig) -> int | None:
    """Return the number of key/value heads; None where each query head has its own."""
    stated: int | None
    if config.model_type == "falcon" and config.new_decoder_architecture:
        stated = config.num_kv_heads
    elif config.model_type in ("falcon", "gpt_bigcode"):
        stated = 1 if config.multi_query else None
    else:
        stated = getattr(config, "num_key_value_heads", None)
    return stated


def _rotated_part(config: PreTrainedConfig) -> float:
    """Return the part of a head that is rotated."""
    stated = getattr(config, "rope_parameters", None) or {}
    return float(stated.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0)
