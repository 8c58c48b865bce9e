"""GLM-4 in both of its layouts."""

from dataclasses import replace

from modelpress.spec.architectures.architecture import Attention, HeadMatrices
from modelpress.spec.architectures.llama import STACKED_MLP, llama_like

GLM = llama_like("glm", mlp=STACKED_MLP)
GLM4 = llama_like(
    "glm4",
    mlp=replace(STACKED_MLP, norm="post_mlp_layernorm"),
    attention=Attention(norm="post_self_attn_layernorm", heads=HeadMatrices()),
)
