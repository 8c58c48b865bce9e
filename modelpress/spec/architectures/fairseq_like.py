"""Models in fairseq's layout: XGLM and BioGPT."""

from modelpress.spec.architectures.architecture import Architecture, Attention, Mlp

XGLM = Architecture(
    model_type="xglm",
    base="model",
    blocks="model.layers",
    embedding="model.embed_tokens",
    tied=True,
    mlp=Mlp(("fc1",), "fc2"),
    attention=Attention("self_attn.out_proj"),
    blocks_field="num_layers",
    width_field="ffn_dim",
)
BIOGPT = Architecture(
    model_type="biogpt",
    base="biogpt",
    blocks="biogpt.layers",
    embedding="biogpt.embed_tokens",
    tied=True,
    mlp=Mlp(("fc1",), "fc2"),
    attention=Attention("self_attn.out_proj"),
    head="output_projection",
)
