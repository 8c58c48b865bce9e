"""Inventories of models that do not exist, for tests that only count."""

from typing import Any

from modelpress.spec.inventory import Inventory, Site, inventory


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


def mixture(model_type: str = "qwen3_moe", experts: int = 16, blocks: int = 3, **config: Any) -> Inventory:
    """Return the inventory of a mixture of 32 × 64 experts, which hold nearly everything."""
    width, hidden = 32, 64
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (50, width)}
    for block in range(blocks):
        inside = f"model.layers.{block}"
        shapes[f"{inside}.self_attn.o_proj.weight"] = (width, width)
        shapes[f"{inside}.mlp.gate.weight"] = (experts, width)
        for number in range(experts):
            expert = f"{inside}.mlp.experts.{number}"
            shapes |= {f"{expert}.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
            shapes[f"{expert}.down_proj.weight"] = (width, hidden)
    fields = {"model_type": model_type, "tie_word_embeddings": True, "num_experts_per_tok": 2}
    return inventory({**fields, **config}, shapes)
