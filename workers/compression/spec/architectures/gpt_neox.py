"""GPT-NeoX, and with it Pythia."""

from workers.compression.spec.architectures.architecture import Architecture, Attention, Mlp

GPT_NEOX = Architecture(
    model_type="gpt_neox",
    base="gpt_neox",
    blocks="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    tied=False,
    mlp=Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    attention=Attention("attention.dense"),
    old_head="embed_out",
)
