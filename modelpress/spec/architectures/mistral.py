"""Mistral and Ministral."""

from modelpress.spec.architectures.llama import llama_like

MISTRAL = llama_like("mistral")
MINISTRAL = llama_like("ministral")
MINISTRAL3 = llama_like("ministral3")
