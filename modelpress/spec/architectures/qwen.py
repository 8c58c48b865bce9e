"""Qwen 2 and Qwen 3."""

from modelpress.spec.architectures.llama import llama_like, llama_like_gguf

QWEN2 = llama_like("qwen2", gguf=llama_like_gguf("qwen2"))
QWEN3 = llama_like(
    "qwen3", gguf=llama_like_gguf("qwen3", attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")
)
