"""Llama, and the layout of modules that its successors share."""

from typing import Any

from modelpress.spec.architectures.architecture import (
    Architecture,
    Attention,
    GgufNames,
    HeadMatrices,
    Mlp,
)

GATED_MLP = Mlp(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
GROUPED_ATTENTION = Attention(heads=HeadMatrices())
UNDIVIDED_ATTENTION = Attention()  # its heads cannot be removed
STACKED_MLP = Mlp(("mlp.gate_up_proj",), "mlp.down_proj", stacked=2)
PLAIN_MLP = Mlp(("mlp.up_proj",), "mlp.down_proj")


def llama_like(
    model_type: str,
    *,
    tied: bool = False,
    mlp: Mlp = GATED_MLP,
    attention: Attention = GROUPED_ATTENTION,
    **others: Any,
) -> Architecture:
    """Return an architecture whose modules outside the blocks have the names of Llama's.

    `others` are further fields of `Architecture`.
    """
    return Architecture(
        model_type=model_type,
        base="model",
        blocks="model.layers",
        embedding="model.embed_tokens",
        tied=tied,
        mlp=mlp,
        attention=attention,
        **others,
    )


def llama_like_gguf(architecture: str, **also: str) -> GgufNames:
    """Return the GGUF names of an architecture whose files name tensors as Llama's do.

    `also` maps further modules inside a block from GGUF's name to transformers'.
    """
    return GgufNames(
        architecture,
        outside={"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
        block={
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "attn_norm": "input_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
            "ffn_norm": "post_attention_layernorm",
            **also,
        },
    )


LLAMA = llama_like("llama", attention=Attention(heads=HeadMatrices(divides_width=True)), gguf=llama_like_gguf("llama"))
