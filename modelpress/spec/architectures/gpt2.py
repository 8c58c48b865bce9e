"""GPT-2."""

from modelpress.spec.architectures.architecture import Architecture, Attention, Mlp

GPT2 = Architecture(
    model_type="gpt2",
    base="transformer",
    blocks="transformer.h",
    embedding="transformer.wte",
    tied=True,
    mlp=Mlp(("mlp.c_fc",), "mlp.c_proj"),
    attention=Attention("attn.c_proj"),
    layout="conv1d",
    blocks_field="n_layer",
    width_field="n_inner",
)
