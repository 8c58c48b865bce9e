"""OPT."""

from modelpress.spec.architectures.architecture import Architecture, Attention, Mlp

OPT = Architecture(
    model_type="opt",
    base="model",
    blocks="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    tied=True,
    mlp=Mlp(("fc1",), "fc2"),
    attention=Attention("self_attn.out_proj"),
    width_field="ffn_dim",
)
