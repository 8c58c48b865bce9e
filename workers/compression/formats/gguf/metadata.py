"""What a GGUF file says of its model, apart from the tokenizer."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from gguf import GGML_QUANT_VERSION, LlamaFileType, size_label
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedConfig

from modelpress.spec.gguf import GgufForm, Window
from workers.compression.formats.gguf.heads import Heads
from workers.compression.formats.gguf.rotation import rotary
from workers.compression.formats.gguf.tensors import FileTensor

QUANTISED_BY = "Modelpress"
_FILE_TYPES = {
    Type.F32: LlamaFileType.ALL_F32,
    Type.F16: LlamaFileType.MOSTLY_F16,
    Type.BF16: LlamaFileType.MOSTLY_BF16,
    Type.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Type.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    Type.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    Type.IQ4_NL: LlamaFileType.MOSTLY_IQ4_NL,
    Type.IQ4_XS: LlamaFileType.MOSTLY_IQ4_XS,
    Type.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    Type.Q3_K: LlamaFileType.MOSTLY_Q3_K_M,
}
_RMS = ("rms_norm_eps",)
_LAYER = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function", "activation")


def general(name: str, form: GgufForm, tensors: Iterable[FileTensor]) -> dict[str, Any]:
    """Return the metadata that files of all architectures have."""
    numbers: Counter[Type] = Counter()
    for tensor in tensors:
        numbers[tensor.type] += tensor.numbers
    most, _ = numbers.most_common(1)[0]
    return {
        "general.architecture": form.architecture,
        "general.type": "model",
        "general.name": name,
        "general.size_label": size_label(numbers.total(), 0, 0, 0),
        "general.quantized_by": QUANTISED_BY,
        "general.quantization_version": GGML_QUANT_VERSION,
        "general.file_type": int(_FILE_TYPES[most]),
    }


def of_architecture(config: PreTrainedConfig, form: GgufForm, width: int, vocabulary: int) -> dict[str, Any]:
    """Return the metadata by which llama.cpp builds the model, with the full names of the keys.

    Args:
        width: hidden units of an MLP.
        vocabulary: rows of the embedding.

    Raises:
        ValueError: if llama.cpp would compute something else than the model does.
    """
    _check(config, form)
    heads = Heads.of(config)
    window, positions = _window(config, form), _stated(config, _POSITIONS)
    found: dict[str, Any] = {
        "vocab_size": vocabulary,
        "context_length": int(positions),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": width,
        "attention.head_count": heads.queries,
        "attention.head_count_kv": heads.key_values,
        "attention.key_length": heads.size,
        "attention.value_length": heads.size,
        **_epsilons(config),
        **({} if form.unrotated else rotary(config, form)),
        **window,
        **form.constants,
    }
    for key, field in form.fields.items():
        if (value := _field(config, field)) is not None:
            found[key] = value if isinstance(value, bool) else float(value)
    return {f"{form.architecture}.{key}": value for key, value in found.items()}


def _epsilons(config: PreTrainedConfig) -> dict[str, float]:
    if (rms := _stated(config, _RMS)) is not None:
        return {"attention.layer_norm_rms_epsilon": float(rms)}
    layer = _stated(config, _LAYER)
    return {} if layer is None else {"attention.layer_norm_epsilon": float(layer)}


def _check(config: PreTrainedConfig, form: GgufForm) -> None:
    """Raise ValueError if llama.cpp would compute something else than the model does."""
    activation = _stated(config, _ACTIVATIONS)
    if isinstance(activation, str) and activation not in form.activation:
        raise _other(form, f"the activation {activation!r}, but {form.activation[0]!r}")
    for field, needed in form.needs.items():
        if (stated := getattr(config, field, None)) is not None and stated != needed:
            raise _other(form, f"{field} = {stated}, but {needed}")
    blocks = range(config.num_hidden_layers)
    if form.unrotated_period is not None and hasattr(config, "no_rope_layers"):
        rotated = [bool(stated) for stated in config.no_rope_layers]
        if rotated != [(block + 1) % form.unrotated_period != 0 for block in blocks]:
            raise _other(form, f"other blocks without rotation than every {form.unrotated_period}th")
    scalar = getattr(config, "query_pre_attn_scalar", None)
    width = config.hidden_size // config.num_attention_heads
    assumed = width if len(blocks) == form.large_blocks else Heads.of(config).size
    if scalar is not None and scalar != assumed:
        raise _other(form, f"query_pre_attn_scalar = {scalar}, but {assumed} with {len(blocks)} blocks")


def _other(form: GgufForm, what: str) -> ValueError:
    return ValueError(f"llama.cpp does not have {what} in its architecture {form.architecture!r}")


def _window(config: PreTrainedConfig, form: GgufForm) -> dict[str, Any]:
    """Return the metadata of sliding windows; without them in llama.cpp, a context that no window limits."""
    size, sliding = getattr(config, "sliding_window", None), _sliding(config)
    if not size or not any(sliding):
        return {"attention.sliding_window": 0} if form.window is Window.EVERY else {}
    if form.window_blocks not in (None, config.num_hidden_layers):
        raise _other(form, f"sliding windows with {config.num_hidden_layers} blocks, but with {form.window_blocks}")
    if form.window is Window.NONE:
        if size >= config.max_position_embeddings:
            return {}
        return {"context_length": int(size)}
    found = {"attention.sliding_window": int(size)}
    if form.window is Window.EVERY:
        return found
    if form.period is not None and sliding == [(block + 1) % form.period != 0 for block in range(len(sliding))]:
        return found  # older releases of llama.cpp do not read the list
    return {**found, "attention.sliding_window_pattern": sliding}


def _sliding(config: PreTrainedConfig) -> list[bool]:
    """Return for each block whether it attends to a sliding window only."""
    stated = getattr(config, "layer_types", None)
    if stated is None:
        return [True] * config.num_hidden_layers
    return [kind == "sliding_attention" for kind in stated]


def _field(config: PreTrainedConfig, path: str) -> Any:
    """Return the value of a field, which may lie in another: `attn_config.clip_qkv`; None where there is none."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def _stated(config: PreTrainedConfig, names: Iterable[str]) -> Any:
    """Return the value of the first of these fields that the config has."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
