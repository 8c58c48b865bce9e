"""Models after GPT-3: GPT-J, GPT-BigCode, CodeGen, Falcon, BLOOM and MPT."""

from modelpress.spec.architectures.architecture import Architecture, Attention, Mlp


def _gpt_like(
    model_type: str,
    *,
    mlp: Mlp,
    attention: Attention,
    width_field: str | None,
    tied: bool = False,
    blocks: str = "transformer.h",
    embedding: str = "transformer.wte",
    blocks_field: str = "n_layer",
    integers: bool = True,
) -> Architecture:
    """Return an architecture whose modules lie below `transformer`."""
    return Architecture(
        model_type=model_type,
        base="transformer",
        blocks=blocks,
        embedding=embedding,
        tied=tied,
        mlp=mlp,
        attention=attention,
        blocks_field=blocks_field,
        width_field=width_field,
        integers=integers,
    )


_MLP = Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")

GPTJ = _gpt_like(
    "gptj", mlp=Mlp(("mlp.fc_in",), "mlp.fc_out"), attention=Attention("attn.out_proj"), width_field="n_inner"
)
CODEGEN = _gpt_like(
    "codegen", mlp=Mlp(("mlp.fc_in",), "mlp.fc_out"), attention=Attention("attn.out_proj"), width_field="n_inner"
)
GPT_BIGCODE = _gpt_like(
    "gpt_bigcode",
    tied=True,
    mlp=Mlp(("mlp.c_fc",), "mlp.c_proj"),
    attention=Attention("attn.c_proj"),
    width_field="n_inner",
    integers=False,
)
FALCON = _gpt_like(
    "falcon",
    tied=True,
    embedding="transformer.word_embeddings",
    mlp=_MLP,
    attention=Attention("self_attention.dense"),
    blocks_field="num_hidden_layers",
    width_field="ffn_hidden_size",
    integers=False,
)
BLOOM = _gpt_like(
    "bloom",
    tied=True,
    embedding="transformer.word_embeddings",
    mlp=_MLP,
    attention=Attention("self_attention.dense"),
    width_field=None,  # always four times the width
)
MPT = _gpt_like(
    "mpt",
    tied=True,
    blocks="transformer.blocks",
    mlp=Mlp(("ffn.up_proj",), "ffn.down_proj"),
    attention=Attention("attn.out_proj"),
    blocks_field="n_layers",
    width_field=None,  # always four times the width
)
