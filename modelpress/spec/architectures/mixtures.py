"""Mixtures of experts."""

from dataclasses import replace

from modelpress.spec.architectures.architecture import Attention, Experts, HeadMatrices, Mlp
from modelpress.spec.architectures.llama import UNDIVIDED_ATTENTION, llama_like


def _gated(inside: str) -> Mlp:
    """Return the gated MLP whose three matrices are inside the module `inside`."""
    return Mlp((f"{inside}.gate_proj", f"{inside}.up_proj"), f"{inside}.down_proj")


_LISTED = Experts()
_ROUTED = ("mlp.experts", "mlp.gate")
# Older files call the module of a mixture so; in the transformers model it is `mlp`.
_SPARSE = Experts(
    listed="block_sparse_moe.experts", router=("block_sparse_moe.gate.weight", "mlp.gate.weight", "mlp.router.weight")
)
_SPARSE_WHOLE = ("block_sparse_moe", "mlp")
_CORRECTED = ("mlp.gate.weight", "mlp.gate.e_score_correction_bias")
_SHARED = Experts(router=_CORRECTED, count_fields=("n_routed_experts",), shared=_gated("mlp.shared_experts"))
_GATED_SHARED = Experts(shared=_gated("mlp.shared_expert"))

MIXTRAL = llama_like("mixtral", experts=_SPARSE, whole=_SPARSE_WHOLE)
PHIMOE = llama_like("phimoe", attention=UNDIVIDED_ATTENTION, experts=_SPARSE, whole=_SPARSE_WHOLE)
QWEN2_MOE = llama_like("qwen2_moe", mixed=True, experts=_GATED_SHARED, whole=(*_ROUTED, "mlp.shared_expert_gate"))
QWEN3_MOE = llama_like("qwen3_moe", mixed=True, experts=_LISTED, whole=_ROUTED)
OLMOE = llama_like("olmoe", attention=UNDIVIDED_ATTENTION, experts=_LISTED, whole=_ROUTED)  # norms span all heads
GLM4_MOE = llama_like("glm4_moe", mixed=True, experts=_SHARED, whole=_ROUTED)
DOTS1 = llama_like("dots1", mixed=True, experts=_SHARED, whole=_ROUTED)
DEEPSEEK_V3 = llama_like("deepseek_v3", mixed=True, attention=UNDIVIDED_ATTENTION, experts=_SHARED, whole=_ROUTED)
GPT_OSS = llama_like(
    "gpt_oss",
    attention=UNDIVIDED_ATTENTION,  # each head has a sink
    experts=Experts(
        listed=None,
        stacked=tuple(
            f"mlp.experts.{name}" for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        ),
        router=("mlp.router.weight", "mlp.router.bias"),
    ),
    whole=("mlp.experts", "mlp.router"),
)
GRANITEMOE = llama_like(
    "granitemoe",
    attention=Attention(scaled=True, heads=HeadMatrices()),
    experts=Experts(
        listed=None,
        stacked=("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
        router=("block_sparse_moe.router.layer.weight",),
        module="block_sparse_moe.experts",
    ),
    whole=("block_sparse_moe",),
)
LLAMA4_TEXT = replace(
    llama_like(
        "llama4_text",
        experts=Experts(
            listed=None,
            stacked=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
            router=("feed_forward.router.weight",),
            module=None,
            shared=_gated("feed_forward.shared_expert"),
        ),
        mlp=_gated("feed_forward"),
        mixed=True,
        whole=("feed_forward.experts", "feed_forward.router"),
    ),
    width_field="intermediate_size_mlp",
    integers=False,
)
