"""Granite."""

from workers.compression.spec.architectures.architecture import Attention, HeadMatrices
from workers.compression.spec.architectures.llama import llama_like

GRANITE = llama_like("granite", attention=Attention(scaled=True, heads=HeadMatrices()))
