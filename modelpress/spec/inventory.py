"""List the weight matrices of a checkpoint and count its parameters, from its config and the shapes of its tensors.

Torch-free, for the API. Promise: an `Inventory` is only returned if the tensors agree with the config.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from modelpress.spec.architectures import architecture_of
from modelpress.spec.architectures.architecture import Architecture, Attention
from modelpress.spec.config import is_tied, stated_size
from modelpress.spec.errors import AlreadyQuantised, MalformedModel

Layout = Literal["linear", "conv1d", "embedding"]
Shape = tuple[int, ...]
MOST_BLOCKS = 2048
"""More blocks than a model has: what is done for each block must not hold whoever checks a stranger's headers."""

# Older releases of transformers stored masks and rotary frequencies beside the weights; newer ones recompute them.
_STORED_BUFFER = re.compile(
    r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias)$"
)


@dataclass(frozen=True)
class Site:
    """A target module: a weight matrix that a method may replace by a compact structure.

    Attributes:
        name: full name of the module in the transformers model.
        block: number of its block; None for embedding and output head.
        out_features: rows of the matrix [out, in], however `layout` stores it; the vocabulary for an embedding.
        in_features: columns of the matrix [out, in]; the width for an embedding.
        layout: how the checkpoint stores the matrix: "linear" and "embedding" as [out, in], "conv1d" as [in, out].
        bias: whether the module has a bias.
        free_outputs: whether the outputs are hidden units of the MLP that may be permuted, with the rest of the MLP
            permuted accordingly. At most one site of a block has this set.
        packable: whether transformers opens the module where its weights are integers.
    """

    name: str
    block: int | None
    out_features: int
    in_features: int
    layout: Layout
    bias: bool
    free_outputs: bool = False
    packable: bool = True


@dataclass(frozen=True)
class ExpertCounts:
    """The experts of a model's mixtures.

    Attributes:
        total: number of experts in each mixture.
        chosen: number of experts that each token is sent to.
        groups: number of groups of equal size among which the router chooses first.
        parameters: number of parameters that one expert has in each block, its share of the router included; 0 for a
            block without a mixture.
    """

    total: int
    chosen: int
    groups: int
    parameters: tuple[int, ...]


@dataclass(frozen=True)
class Inventory:
    """The weight matrices and parameter counts of a checkpoint.

    Attributes:
        model_type: the config's `model_type`.
        blocks: number of blocks.
        hidden_size: width of the blocks.
        vocab_size: number of rows of the embedding.
        sites: the matrices inside the blocks.
        embedding: the embedding.
        head: the output head; None if it is tied to the embedding.
        total_parameters: number of parameters; a tied head is not counted, even if a file repeats it.
        block_prefix: full name of the list of blocks.
        block_parameters: number of parameters of each block.
        head_size: width of an attention head; None if the config cannot state fewer heads.
        blocks_stay: why no block can be removed; None if blocks can be.
        experts: the experts of the model's mixtures; None if it has none.
    """

    model_type: str
    blocks: int
    hidden_size: int
    vocab_size: int
    sites: tuple[Site, ...]
    embedding: Site
    head: Site | None
    total_parameters: int
    block_prefix: str
    block_parameters: tuple[int, ...] = ()
    head_size: int | None = None
    blocks_stay: str | None = None
    experts: ExpertCounts | None = None

    def sites_of(self, block: int) -> tuple[Site, ...]:
        """Return the matrices inside one block."""
        return tuple(site for site in self.sites if site.block == block)


def weights(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Return {canonical name: stored name} for those of the stored tensors `names` that are weights.

    Buffers from older releases of transformers, a tied head that a file repeats, and what transformers leaves out are
    left out.

    Raises:
        UnsupportedArchitecture: if the config's model type is not registered.
        MalformedModel: if two stored names are the same weight.
    """
    architecture = architecture_of(config)
    dropped_head = f"{architecture.head}.weight" if is_tied(config) else None
    found: dict[str, str] = {}
    for name in names:
        canonical = architecture.canonical(name)
        if architecture.leaves_out(name, config):
            continue
        if _STORED_BUFFER.search(canonical) or canonical == dropped_head:
            continue
        if canonical in found:
            raise MalformedModel(f"The tensors {found[canonical]} and {name} are the same weight, {canonical}.")
        found[canonical] = name
    return found


def inventory(config: Mapping[str, Any], tensors: Mapping[str, Shape]) -> Inventory:
    """Return the inventory of a checkpoint with the `config.json` `config` and the tensors {stored name: shape}.

    Raises:
        UnsupportedArchitecture: if the config's model type is not registered.
        AlreadyQuantised: if the weights are quantised.
        MalformedModel: if the tensors contradict the config or each other.
    """
    architecture = architecture_of(config)
    if config.get("quantization_config"):
        raise AlreadyQuantised(
            "The model's weights are quantised (quantization_config); send the model that it was quantised from."
        )
    shapes = {name: tuple(tensors[stored]) for name, stored in weights(config, tensors).items()}
    for name, shape in shapes.items():
        if 0 in shape:
            raise MalformedModel(f"The tensor {name} is empty: its shape is {list(shape)}.")

    packable = architecture.packable
    embedding = replace(_table(architecture.embedding, "embedding", shapes), packable=packable)
    head = None if is_tied(config) else replace(_table(architecture.head, "linear", shapes), packable=packable)
    blocks = _count_blocks(architecture, shapes)
    hidden_size = stated_size(config, "hidden_size", "n_embd", "d_model") or embedding.in_features
    _check_sizes(config, embedding, head, blocks, hidden_size)
    sites = _sites(architecture, shapes)
    return Inventory(
        model_type=config["model_type"],
        blocks=blocks,
        hidden_size=hidden_size,
        vocab_size=embedding.out_features,
        sites=sites,
        embedding=embedding,
        head=head,
        total_parameters=sum(math.prod(shape) for shape in shapes.values()),
        block_prefix=architecture.blocks,
        block_parameters=_block_parameters(architecture, shapes, blocks),
        head_size=_head_size(config, architecture.attention, sites),
        blocks_stay=_blocks_stay(config, architecture, shapes),
        experts=_count_experts(config, architecture, shapes, blocks),
    )


def _table(name: str, layout: Layout, shapes: Mapping[str, Shape]) -> Site:
    """Return the embedding or output head as a site. Raises MalformedModel if its weight is missing or no matrix."""
    shape = shapes.get(f"{name}.weight")
    if shape is None:
        raise MalformedModel(f"The tensor {name}.weight is missing.")
    if len(shape) != 2:
        raise MalformedModel(f"The tensor {name}.weight has the shape {list(shape)}; a matrix is expected.")
    return Site(name, None, shape[0], shape[1], layout, bias=f"{name}.bias" in shapes)


def _sites(architecture: Architecture, shapes: Mapping[str, Shape]) -> tuple[Site, ...]:
    """Return the matrices inside the blocks, sorted by block and name."""
    pattern = re.compile(rf"({re.escape(architecture.blocks)}\.(\d+)\..+)\.weight")
    sites = []
    for name, shape in shapes.items():
        match = pattern.fullmatch(name)
        if match is None or len(shape) != 2 or architecture.keeps_whole(match[1]):
            continue
        out_features, in_features = shape if architecture.layout == "linear" else reversed(shape)
        bias = f"{match[1]}.bias" in shapes
        free = architecture.mlp.sets_order(match[1])
        block, packable = int(match[2]), architecture.packable
        sites.append(Site(match[1], block, out_features, in_features, architecture.layout, bias, free, packable))
    return tuple(sorted(sites, key=lambda site: (site.block, site.name)))


def _head_size(config: Mapping[str, Any], attention: Attention, sites: Iterable[Site]) -> int | None:
    """Return the width of an attention head according to the weights.

    None if the config does not state the number of heads, the blocks differ in their heads, or some have none.
    """
    if attention.heads is None or (heads := stated_size(config, "num_attention_heads")) is None:
        return None
    sites = list(sites)
    entering = {
        name: {site.out_features for site in sites if site.name.endswith(f".{name}")}
        for name in (attention.heads.queries, attention.heads.keys, attention.heads.values)
    }
    queries, keys, values = entering.values()
    behind = [site for site in sites if site.name.endswith(f".{attention.leaving}")]
    leaving = {site.in_features for site in behind}
    if {site.block for site in behind} != {site.block for site in sites}:
        return None
    if not len(queries) == len(keys) == 1 or queries != leaving or keys != values:
        return None
    (rows,), (shared_rows,) = queries, keys
    size = rows // heads
    # Query heads share key/value heads in groups of equal size.
    alike = size > 0 and rows == heads * size and shared_rows % size == 0 and rows % shared_rows == 0
    return size if alike else None


def _count_blocks(architecture: Architecture, shapes: Mapping[str, Shape]) -> int:
    """Return the number of blocks. Raises MalformedModel unless they are numbered from 0 and hold the same tensors."""
    contents = {number: set(tensors) for number, tensors in _by_block(architecture, shapes).items()}
    if len(contents) > MOST_BLOCKS:
        raise MalformedModel(f"The weights hold {len(contents)} blocks; a model has at most {MOST_BLOCKS}.")
    if sorted(contents) != list(range(len(contents))) or not contents:
        raise MalformedModel(
            f"The blocks under {architecture.blocks} are not numbered from 0 without gaps: {sorted(contents)[:100]}."
        )
    for number, names in contents.items():
        if names != contents[0] and not architecture.mixed:
            odd = sorted(names ^ contents[0])[0]
            raise MalformedModel(
                f"Block {number} and block 0 do not hold the same tensors: {odd} is in only one of them."
            )
    return len(contents)


def _blocks_stay(config: Mapping[str, Any], architecture: Architecture, shapes: Mapping[str, Shape]) -> str | None:
    """Return why no block can be removed; None if blocks can be."""
    if config.get("scale_attn_by_inverse_layer_idx"):
        return "config.json scales attention by the block's number (scale_attn_by_inverse_layer_idx)"
    if architecture.fixed_depth:
        return "what a block computes depends on the number of blocks"
    contents = {frozenset(its.items()) for its in _by_block(architecture, shapes).values()}
    return "the blocks are of several kinds, in an order that config.json describes" if len(contents) > 1 else None


def _by_block(architecture: Architecture, shapes: Mapping[str, Shape]) -> dict[int, dict[str, Shape]]:
    """Return the shapes of each block's tensors, by their names inside the block."""
    pattern = re.compile(rf"{re.escape(architecture.blocks)}\.(\d+)\.(.+)")
    found: dict[int, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if match := pattern.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = shape
    return found


def _count_experts(
    config: Mapping[str, Any], architecture: Architecture, shapes: Mapping[str, Shape], blocks: int
) -> ExpertCounts | None:
    """Return the experts of the mixtures; None if there are none.

    Raises MalformedModel if the mixtures differ in their number of experts, or the config states another one.
    """
    if (experts := architecture.experts) is None:
        return None
    totals: set[int] = set()
    parameters = [0] * blocks
    for block, tensors in _by_block(architecture, shapes).items():
        held = {name: shape for name, shape in tensors.items() if experts.holds_all(name)}
        numbers = {number for name in tensors if (number := experts.number_of(name)) is not None}
        counts = {shape[0] for shape in held.values()} | ({len(numbers)} if numbers else set())
        if not counts:
            continue
        totals |= counts
        listed = sum(math.prod(shape) for name, shape in tensors.items() if experts.number_of(name) is not None)
        parameters[block] = (listed + sum(map(math.prod, held.values()))) // max(counts)
    if not totals:
        return None
    stated = stated_size(config, *experts.count_fields)
    if len(totals) > 1 or stated not in (None, *totals):
        raise MalformedModel(
            f"config.json states {stated} experts, but the weights of the blocks hold {sorted(totals)}."
        )
    chosen = stated_size(config, "num_experts_per_tok", "moe_topk") or 1
    return ExpertCounts(totals.pop(), chosen, stated_size(config, "n_group") or 1, tuple(parameters))


def _block_parameters(architecture: Architecture, shapes: Mapping[str, Shape], blocks: int) -> tuple[int, ...]:
    """Return the number of parameters of each block."""
    tensors = _by_block(architecture, shapes)
    return tuple(sum(map(math.prod, tensors[number].values())) for number in range(blocks))


def _check_sizes(config: Mapping[str, Any], embedding: Site, head: Site | None, blocks: int, hidden_size: int) -> None:
    """Raise MalformedModel if the config states other numbers of blocks, rows or columns than the weights have."""
    vocab_size = stated_size(config, "vocab_size")
    width = stated_size(config, "word_embed_proj_dim") or hidden_size
    stated_blocks = stated_size(config, "num_hidden_layers", architecture_of(config).blocks_field)
    if stated_blocks not in (None, blocks):
        raise MalformedModel(f"config.json states {stated_blocks} blocks, but the weights hold {blocks}.")
    for site in (embedding, head):
        if site is None:
            continue
        if vocab_size not in (None, site.out_features):
            raise MalformedModel(
                f"config.json states a vocabulary of {vocab_size}, but {site.name}.weight has {site.out_features} rows."
            )
        if site.in_features != width:
            raise MalformedModel(
                f"config.json states a width of {width}, but {site.name}.weight has {site.in_features} columns."
            )
