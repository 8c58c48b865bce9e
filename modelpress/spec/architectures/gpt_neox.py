"""GPT-NeoX, and with it Pythia; Persimmon."""

from modelpress.spec.architectures.architecture import Architecture, Attention, Mlp
from modelpress.spec.architectures.llama import llama_like

_MLP = Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")

GPT_NEOX = Architecture(
    model_type="gpt_neox",
    base="gpt_neox",
    blocks="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    tied=False,
    mlp=_MLP,
    attention=Attention("attention.dense"),
    old_head="embed_out",
)
PERSIMMON = llama_like("persimmon", mlp=_MLP, attention=Attention("self_attn.dense"))
