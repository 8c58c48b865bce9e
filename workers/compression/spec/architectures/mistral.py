"""Mistral."""

from workers.compression.spec.architectures.llama import llama_like

MISTRAL = llama_like("mistral")
