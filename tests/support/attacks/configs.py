"""Configs that ask for code, state other sizes than the weights have, or cannot be read."""

from typing import Any

from tests.support.attacks.attack import Attack, files
from tests.support.checkpoints import CONFIG, json_bytes

HUGE = 10**12
REFUSED = ("invalid_model", "unsupported_architecture")


def config(**changes: Any) -> Attack:
    """Return the attack of a sound model whose config says something else."""
    return Attack(files({"config.json": json_bytes(CONFIG | changes)}), REFUSED)


def raw(content: bytes) -> Attack:
    """Return the attack of a model with this config."""
    return Attack(files({"config.json": content}), REFUSED)


ATTACKS = {
    "code for an unknown type": config(model_type="evil", auto_map={"AutoModel": "evil.Evil"}),
    "a kernel of a stranger": config(attn_implementation="evil/kernel"),
    "a kernel under its older name": config(_attn_implementation="evil/kernel"),
    "quantised by a stranger": config(quantization_config={"quant_method": "evil"}),
    **{
        f"a huge {field}": config(**{field: HUGE})
        for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    },
    "a huge head": config(head_dim=HUGE),
    "a head of a long list": config(head_dim=[0] * 100_000),
    "a width of a long text": config(hidden_size="8" * 100_000),
    "no heads": config(num_attention_heads=0),
    "heads below zero": config(num_attention_heads=-2),
    "heads that are a text": config(num_attention_heads="2"),
    "a width that is a list": config(hidden_size=[8]),
    "key/value heads that do not divide": config(num_key_value_heads=3),
    "an unknown rotation": config(rope_scaling={"rope_type": "evil"}),
    "a rotation of an unknown shape": config(rope_scaling={"rope_type": ["evil"]}),
    "an unknown activation": config(hidden_act="os.system"),
    "unknown kinds of blocks": config(layer_types=["evil", "evil"]),
    "an unknown type of numbers": config(dtype="evil"),
    "a norm that divides by NaN": config(rms_norm_eps=float("nan")),
    "a rotation that is a text": config(rope_scaling="evil"),
    "a padding token beyond the table": config(pad_token_id=10**9),
    "a type that is a list": config(model_type=["llama"]),
    "a type with a NUL": config(model_type="llama\0"),
    "nested too deep": raw(b'{"a":' * 400_000),
    "many lists": raw(b'{"a":[' + b"[]," * 600_000 + b"[]]}"),
    "two megabytes too many": raw(b" " * 4_000_000 + b"{}"),
    "half a character": raw(b'{"model_type":"\xff"}'),
    "half a surrogate pair": raw(b'{"model_type":"\\ud800"}'),
    "a number of many digits": raw(b'{"model_type":"llama","hidden_size":' + b"9" * 5000 + b"}"),
    "nothing": raw(b""),
}
