"""EXAONE 4."""

from modelpress.spec.architectures.architecture import Attention, HeadMatrices, Mlp
from modelpress.spec.architectures.llama import GATED_MLP, llama_like

EXAONE4 = llama_like(
    "exaone4",
    mlp=Mlp(GATED_MLP.entering, GATED_MLP.leaving, norm="post_feedforward_layernorm"),
    attention=Attention(norm="post_attention_layernorm", heads=HeadMatrices()),
)
