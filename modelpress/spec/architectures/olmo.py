"""OLMo, OLMo 2 and OLMo 3."""

from modelpress.spec.architectures.architecture import Attention, Mlp
from modelpress.spec.architectures.llama import GATED_MLP, llama_like

# OLMo 2 and 3 have their norms behind attention and MLP; those of queries and keys span all heads.
_MLP = Mlp(GATED_MLP.entering, GATED_MLP.leaving, norm="post_feedforward_layernorm")
_ATTENTION = Attention(norm="post_attention_layernorm")

OLMO = llama_like("olmo")
OLMO2 = llama_like("olmo2", mlp=_MLP, attention=_ATTENTION)
OLMO3 = llama_like("olmo3", mlp=_MLP, attention=_ATTENTION)
