"""What config.json states by name or as a number, held against what transformers knows. Torch-free, for the API."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from modelpress.spec.errors import MalformedModel

ROPE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "su"})
ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function", "activation")
ACTIVATIONS = frozenset(
    {
        "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
        "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu",
        "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
    }
)  # fmt: skip
LAYER_TYPES = frozenset(
    {
        "full_attention", "sliding_attention", "chunked_attention", "window_attention", "indexed_attention",
        "compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse", "conv", "moe", "hybrid",
        "hybrid_sliding", "reference_sliding_attention", "linear_attention", "sparse", "dense",
    }
)  # fmt: skip
OLDER_LAYER_TYPES = frozenset({"attention", "mamba", "deepseek_sparse_attention", "qwen_sparse_attention"})
"""Names that transformers reads as one of LAYER_TYPES."""
DTYPES = frozenset({"float64", "double", "float32", "float", "float16", "half", "bfloat16"})
_DTYPE_FIELDS = ("dtype", "torch_dtype")
_SMALL_NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def check_stated(config: Mapping[str, Any]) -> None:
    """Check the names and numbers that config.json states.

    Raises:
        MalformedModel: an activation, a kind of block or rotation, or a type of numbers is unknown, or a number is NaN
            or cannot be added to a variance.
    """
    _check_numbers(config)
    _check_names(config)
    _check_rotary(config)


def _check_names(config: Mapping[str, Any]) -> None:
    for field in ACTIVATION_FIELDS:
        _check_known(field, config.get(field), ACTIVATIONS)
    for field in _DTYPE_FIELDS:
        stated = config.get(field)
        _check_known(field, stated.removeprefix("torch.") if isinstance(stated, str) else stated, DTYPES)
    kinds = config.get("layer_types")
    if kinds is None:
        return
    if not isinstance(kinds, list):
        raise MalformedModel(f"layer_types of config.json is {kinds!r:.100}; a list is expected.")
    for kind in kinds:
        _check_known("layer_types", kind, LAYER_TYPES | OLDER_LAYER_TYPES)


def _check_known(field: str, stated: object, known: frozenset[str]) -> None:
    if stated is not None and (not isinstance(stated, str) or stated not in known):
        raise MalformedModel(f"config.json states {stated!r:.100} as {field}; known are {', '.join(sorted(known))}.")


def _check_numbers(config: Mapping[str, Any]) -> None:
    for field, value in config.items():
        if any(isinstance(number, float) and math.isnan(number) for number in _scalars(value)):
            raise MalformedModel(f"{field!r:.100} of config.json holds NaN.")
    for field in _SMALL_NUMBERS:
        value = config.get(field)
        if value is not None and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise MalformedModel(f"{field} of config.json is {value!r:.100}; a number of at least 0 is expected.")


def _scalars(value: object) -> Iterator[object]:
    """Yield what is no list and no object, at any depth."""
    open_values = [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            open_values.extend(value.values())
        elif isinstance(value, list):
            open_values.extend(value)
        else:
            yield value


def _check_rotary(config: Mapping[str, Any]) -> None:
    for field in ("rope_scaling", "rope_parameters"):
        if (stated := config.get(field)) is None:
            continue
        if not isinstance(stated, dict):
            raise MalformedModel(f"{field} of config.json is {stated!r:.100}; an object is expected.")
        for each in (stated, *(value for value in stated.values() if isinstance(value, dict))):
            _check_known(f"the rope_type of {field}", each.get("rope_type", each.get("type")), ROPE_TYPES)
