"""The architectures that llama.cpp has, and how its GGUF files state and store them. Torch-free, for the service.

    LLAMA_CPP["llama"].architecture       # "llama", the value of general.architecture

To add an architecture, add a row to the table. Names of tensors follow from those in transformers by the table of the
`gguf` package, and most of the metadata from common fields of the config (`formats.gguf.metadata`). A row says what
follows from neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from modelpress.spec.codes import CODES
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.methods.base import Leaves


class Rows(Enum):
    """How the rows of queries and keys are ordered in a file, seen from transformers' order."""

    SAME = "as in transformers"
    PAIRED = "the two numbers that are rotated together lie side by side, not half a head apart"
    SPLIT = "queries of all heads, then keys, then values, not these three for each head"


class Window(Enum):
    """How llama.cpp learns which blocks attend to a sliding window only."""

    NONE = "it has no sliding window for this architecture"
    EVERY = "all blocks have the window"
    LISTED = "a list says it for each block"


@dataclass(frozen=True)
class GgufForm:
    """llama.cpp's name for an architecture, and the metadata that it needs in a file of it.

    Attributes:
        architecture: the value of `general.architecture`.
        activation: the activations that llama.cpp computes there, by their names in configs.
        rows: the order of the rows of queries and keys.
        window: how sliding windows are stated.
        window_blocks: the only number of blocks with which it has windows; None: any number.
        period: without a list llama.cpp takes every n-th block to have full attention, and the others a window; None if
            it needs the list.
        unrotated_period: every n-th block has no rotation; None where all have it.
        large_blocks: the number of blocks from which llama.cpp concludes that attention is scaled by the width of the
            model for each head, not by that of a head; None where it never is.
        shifted_norms: whether transformers adds 1 to the weights of norms, which files store added.
        fields: {key behind the architecture's name: field of the config}, where the config states the field.
        constants: {key behind the architecture's name: value}.
        needs: {field of the config: the only value for which llama.cpp computes the same}, where the config states it.
        divided: whether it reads a tensor that divides the frequencies of rotary positions, as Llama 3 scales them.
        unrotated: whether positions are not encoded by rotation.
    """

    architecture: str
    activation: tuple[str, ...] = ("silu", "swish")
    rows: Rows = Rows.SAME
    window: Window = Window.NONE
    window_blocks: int | None = None
    period: int | None = None
    unrotated_period: int | None = None
    large_blocks: int | None = None
    shifted_norms: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str | float | int | bool] = field(default_factory=dict)
    needs: Mapping[str, object] = field(default_factory=dict)
    divided: bool = False
    unrotated: bool = False


_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_SQUARED = ("relu2",)
_SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_GPT2 = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
_MPT = {"attention.max_alibi_bias": "attn_config.alibi_bias_max", "attention.clamp_kqv": "attn_config.clip_qkv"}

LLAMA_CPP: Mapping[str, GgufForm] = MappingProxyType(
    {
        "llama": GgufForm("llama", rows=Rows.PAIRED, divided=True),
        "mistral": GgufForm("llama", rows=Rows.PAIRED, divided=True),
        "arcee": GgufForm("arcee", activation=_SQUARED, rows=Rows.PAIRED, divided=True),
        "qwen2": GgufForm("qwen2"),
        "qwen3": GgufForm("qwen3"),
        "gemma": GgufForm("gemma", activation=_GELU, shifted_norms=True),
        "gemma2": GgufForm(
            "gemma2",
            activation=_GELU,
            window=Window.LISTED,
            period=2,
            large_blocks=46,
            shifted_norms=True,
            fields=_SOFTCAPS,
        ),
        "gemma3_text": GgufForm(
            "gemma3",
            activation=_GELU,
            window=Window.LISTED,
            period=6,
            large_blocks=62,
            shifted_norms=True,
            fields=_SOFTCAPS,
            needs={"use_bidirectional_attention": False},
        ),
        "phi": GgufForm("phi2", activation=_GELU, needs={"qk_layernorm": False}),
        "phi3": GgufForm("phi3", window=Window.EVERY),
        "gpt2": GgufForm("gpt2", activation=_GELU, needs=_GPT2, unrotated=True),
        "gpt_neox": GgufForm(
            "gptneox",
            activation=_GELU,
            rows=Rows.SPLIT,
            fields={"use_parallel_residual": "use_parallel_residual"},
        ),
        "smollm3": GgufForm("smollm3", rows=Rows.PAIRED, unrotated_period=4),
        "stablelm": GgufForm("stablelm", fields={"use_parallel_residual": "use_parallel_residual"}),
        "starcoder2": GgufForm("starcoder2", activation=_GELU),
        "gpt_bigcode": GgufForm(
            "starcoder", activation=_GELU, rows=Rows.SPLIT, needs={"scale_attn_weights": True}, unrotated=True
        ),
        "granite": GgufForm("granite", rows=Rows.PAIRED, fields=_GRANITE, divided=True),
        "cohere": GgufForm("command-r", fields={"logit_scale": "logit_scale"}, needs={"use_qk_norm": False}),
        "cohere2": GgufForm("cohere2", window=Window.LISTED, period=4, fields={"logit_scale": "logit_scale"}),
        "exaone4": GgufForm("exaone4", window=Window.LISTED, window_blocks=64, divided=True),
        "olmo": GgufForm(
            "olmo",
            rows=Rows.PAIRED,
            fields={"attention.clamp_kqv": "clip_qkv"},
            constants={"attention.layer_norm_epsilon": 1e-5},
        ),
        "olmo2": GgufForm("olmo2"),
        "olmo3": GgufForm("olmo2", window=Window.LISTED),
        "glm4": GgufForm("glm4"),
        "glm": GgufForm("chatglm"),
        "seed_oss": GgufForm("seed_oss"),
        "ernie4_5": GgufForm("ernie4_5"),
        "hunyuan_v1_dense": GgufForm("hunyuan-dense"),
        "nemotron": GgufForm("nemotron", activation=_SQUARED, shifted_norms=True),
        "falcon": GgufForm(
            "falcon",
            activation=_GELU,
            rows=Rows.SPLIT,
            constants={"tensor_data_layout": "jploski"},
            needs={"alibi": False, "parallel_attn": True},
        ),
        "bloom": GgufForm(
            "bloom",
            activation=_GELU,
            rows=Rows.SPLIT,
            needs={"apply_residual_connection_post_layernorm": False},
            unrotated=True,
        ),
        "mpt": GgufForm("mpt", activation=_GELU, fields=_MPT, unrotated=True),
    }
)
"""What llama.cpp expects, by `model_type`."""

_CODES = ("q8_0", "q6_k", "q5_0", "iq4_nl", "iq4_xs", "mxfp4", "q3_k")
"""The codes that are chosen for GGUF files. Files can hold `q4_0`, but `iq4_nl` is better at the same size."""


def gguf_codes(inventory: Inventory, site: Site) -> tuple[str, ...]:
    """Return the codes in which a GGUF file can store a matrix: those whose blocks fit its rows."""
    return tuple(name for name in _CODES if CODES[name].fits(site.in_features))


def refuse_gguf(inventory: Inventory, leaves: Leaves) -> str | None:
    """Return why a model cannot be written as a GGUF file, or None if it can."""
    if inventory.model_type not in LLAMA_CPP:
        return (
            f"llama.cpp does not have the architecture {inventory.model_type!r}; it has {', '.join(sorted(LLAMA_CPP))}"
        )
    if leaves is not Leaves.PLAIN:
        return (
            "llama.cpp has no factored layers; choose a method that always leaves ordinary matrices, such as 'fusion' "
            "or 'width'"
        )
    return None
