"""Gemma, Gemma 2, the text models of Gemma 3 and 4, and VaultGemma."""

from dataclasses import replace

from modelpress.spec.architectures.architecture import Attention, HeadMatrices, Mlp
from modelpress.spec.architectures.llama import GATED_MLP, llama_like

# Gemma 2 and 3 have a further norm behind attention and MLP.
_MLP = Mlp(GATED_MLP.entering, GATED_MLP.leaving, norm="post_feedforward_layernorm")
_ATTENTION = Attention(norm="post_attention_layernorm", heads=HeadMatrices(divides_width=True))

GEMMA = llama_like("gemma", tied=True)
GEMMA2 = llama_like("gemma2", tied=True, mlp=_MLP, attention=_ATTENTION)
GEMMA3_TEXT = llama_like("gemma3_text", tied=True, mlp=_MLP, attention=_ATTENTION)
# The output of a Gemma 4 block is scaled as a whole, so nothing is added to the residual stream as it is.
GEMMA4_TEXT = replace(
    llama_like("gemma4_text", tied=True, attention=Attention(scaled=True), mixed=True),
    refused={"hidden_size_per_layer_input": 256, "num_kv_shared_layers": 0, "enable_moe_block": False},
)
VAULTGEMMA = llama_like("vaultgemma", tied=True, attention=Attention(heads=HeadMatrices(divides_width=True)))
