"""Granite."""

from modelpress.spec.architectures.architecture import Attention, HeadMatrices
from modelpress.spec.architectures.llama import llama_like

GRANITE = llama_like("granite", attention=Attention(scaled=True, heads=HeadMatrices()))
