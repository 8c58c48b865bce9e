"""Models whose blocks mix in other ways than attention: their mixers stay as they are."""

from dataclasses import replace

from modelpress.spec.architectures.architecture import Attention, Experts, Mlp
from modelpress.spec.architectures.llama import UNDIVIDED_ATTENTION, llama_like

_SHARED_EXPERT = Mlp(("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), "mlp.shared_expert.down_proj")
_QWEN_MIXTURE = Experts(shared=_SHARED_EXPERT)
_QWEN_ROUTED = ("linear_attn", "mlp.experts", "mlp.gate", "mlp.shared_expert_gate")

_NEXT_TOKENS = ("mtp.",)

QWEN3_5_TEXT = llama_like(
    "qwen3_5_text",
    attention=UNDIVIDED_ATTENTION,
    mixed=True,
    whole=("linear_attn",),
    left_out=_NEXT_TOKENS,
)
QWEN3_5_MOE_TEXT = llama_like(
    "qwen3_5_moe_text",
    attention=UNDIVIDED_ATTENTION,
    experts=_QWEN_MIXTURE,
    mixed=True,
    whole=_QWEN_ROUTED,
    left_out=_NEXT_TOKENS,
)
QWEN3_NEXT = llama_like(
    "qwen3_next",
    attention=UNDIVIDED_ATTENTION,
    experts=_QWEN_MIXTURE,
    mixed=True,
    whole=_QWEN_ROUTED,
    left_out=_NEXT_TOKENS,
)
LFM2 = replace(
    llama_like(
        "lfm2",
        tied=True,
        mlp=Mlp(("feed_forward.w1", "feed_forward.w3"), "feed_forward.w2"),
        attention=Attention("self_attn.out_proj"),
        mixed=True,
        whole=("conv",),
    ),
    width_field=None,  # the config's field is rounded before it is used
)
FALCON_H1 = llama_like(
    "falcon_h1",
    mlp=Mlp(("feed_forward.gate_proj", "feed_forward.up_proj"), "feed_forward.down_proj"),
    attention=Attention(scaled=True),
    whole=("mamba",),
)
GRANITEMOEHYBRID = replace(
    llama_like(
        "granitemoehybrid",
        mlp=Mlp(("shared_mlp.input_linear",), "shared_mlp.output_linear", stacked=2),
        attention=Attention(scaled=True),
        experts=Experts(
            listed=None,
            stacked=("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
            router=("block_sparse_moe.router.layer.weight",),
            module="block_sparse_moe.experts",
        ),
        mixed=True,
        whole=("mamba", "block_sparse_moe"),
    ),
    width_field="shared_intermediate_size",
)
