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
    total = vocabulary * width + sum(site.out_features * site.in_features for site in sites) + width * (2 * blocks + 1)
    if tied:
        return Inventory("llama", blocks, width, vocabulary, sites, embedding, None, total, "model.layers")
    head = Site("lm_head", None, vocabulary, width, "linear", False)
    total += vocabulary * width
    return Inventory("llama", blocks, width, vocabulary, sites, embedding, head, total, "model.layers")
