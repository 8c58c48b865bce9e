"""Inventories of models that do not exist, for tests that only count."""

from workers.compression.spec.inventory import Inventory, Site


def llama_like(
    blocks: int = 4, width: int = 64, hidden: int = 160, vocabulary: int = 500, tied: bool = True
) -> Inventory:
    """Return the inventory of a model with two attention and two MLP matrices in each block."""
    shapes = {"self_attn.q_proj": (width, width), "self_attn.o_proj": (width, width)}
    shapes |= {"mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden)}
    sites = tuple(
        Site(f"model.layers.{block}.{name}", block, out, into, "linear", False)
        for block in range(blocks)
        for name, (out, into) in shapes.items()
    )
    embedding = Site("model.embed_tokens", None, vocabulary, width, "embedding", False)
    in_block = sum(out * into for out, into in shapes.values()) + 2 * width
    head = None if tied else Site("lm_head", None, vocabulary, width, "linear", False)
    return Inventory(
        model_type="llama",
        blocks=blocks,
        hidden_size=width,
        vocab_size=vocabulary,
        sites=sites,
        embedding=embedding,
        head=head,
        total_parameters=(1 if tied else 2) * vocabulary * width + blocks * in_block + width,
        block_prefix="model.layers",
        block_parameters=(in_block,) * blocks,
    )
