"""The architectures that can be compressed, and what a checkpoint of one of them holds. Torch-free, for the API.

Promise: an `Inventory` is only returned for tensors that agree with the config. `inventory(config, tensors)` raises
UnsupportedArchitecture or MalformedModel; `read_safetensors_headers(directory, within=None)` supplies `tensors`.

Adding an architecture is one row in `ARCHITECTURES`: sites are not listed by hand, every two-dimensional `.weight`
inside a block is one.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workers.compression.spec.errors import MalformedModel, MissingWeights, UnsupportedArchitecture
from workers.compression.spec.headers import read_safetensors_headers

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Attention",
    "Inventory",
    "Layout",
    "MalformedModel",
    "MissingWeights",
    "Mlp",
    "Site",
    "UnsupportedArchitecture",
    "architecture_of",
    "compressed_type",
    "inventory",
    "is_tied",
    "original_config",
    "read_config",
    "read_safetensors_headers",
    "weights",
]

Layout = Literal["linear", "conv1d", "embedding"]
Shape = tuple[int, ...]

# Older releases of transformers stored masks and rotary frequencies beside the weights; newer ones recompute them.
_STORED_BUFFER = re.compile(
    r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias)$"
)


@dataclass(frozen=True)
class Mlp:
    """Where a block keeps its MLP, by names inside the block.

    Each matrix of `entering` has one row for every hidden unit, or `stacked` such matrices below one another; `leaving`
    has one column for each. `norm` stands between the latter and the stream, where there is one.
    """

    entering: tuple[str, ...]
    leaving: str
    stacked: int = 1
    norm: str | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        return (*self.entering, self.leaving)

    def sets_order(self, site: str) -> bool:
        """Whether the hidden units may be put in the order that suits this site, the first that enters the MLP."""
        return self.stacked == 1 and site.endswith(f".{self.entering[0]}")


@dataclass(frozen=True)
class HeadMatrices:
    """Which matrices of a block have one row for every number of every attention head, by names inside the block.

    `divides_width`: the config is refused where the width is no multiple of the number of query heads.
    """

    queries: str = "self_attn.q_proj"
    keys: str = "self_attn.k_proj"
    values: str = "self_attn.v_proj"
    divides_width: bool = False


@dataclass(frozen=True)
class Attention:
    """Where a block keeps its attention, by names inside the block.

    `leaving` is the matrix by which it adds to the stream, and has one column for every number of every query head;
    `norm` stands between the two, where there is one. `heads` is None where the config has no field for the size of a
    head: there can then not be fewer of them.
    """

    leaving: str = "self_attn.o_proj"
    norm: str | None = None
    heads: HeadMatrices | None = None


_GATED = Mlp(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
_NORMED = Mlp(_GATED.entering, _GATED.leaving, norm="post_feedforward_layernorm")
_ANY_HEADS = Attention(heads=HeadMatrices())
_DIVIDING_HEADS = Attention(heads=HeadMatrices(divides_width=True))
_NORMED_HEADS = Attention(norm="post_attention_layernorm", heads=HeadMatrices(divides_width=True))


@dataclass(frozen=True)
class Architecture:
    """One row of the table: where a model type of transformers keeps its parts.

    `base` is the prefix of the base model, which some checkpoints leave out of their tensor names; `tied` is what the
    type's config assumes for `tie_word_embeddings` when the file does not say; `old_head` is the head's name in older
    files. `blocks_field` and `width_field` are what the config calls the number of blocks and that of an MLP's hidden
    units.
    """

    base: str
    blocks: str
    embedding: str
    tied: bool
    layout: Literal["linear", "conv1d"] = "linear"
    head: str = "lm_head"
    old_head: str | None = None
    mlp: Mlp = _GATED
    blocks_field: str = "num_hidden_layers"
    width_field: str = "intermediate_size"
    attention: Attention = Attention()

    def canonical(self, name: str) -> str:
        """The name of a stored tensor as the transformers model with a language-modelling head has it."""
        if self.old_head and name.startswith(f"{self.old_head}."):
            return self.head + name.removeprefix(self.old_head)
        if name.startswith((f"{self.base}.", f"{self.head}.")):
            return name
        return f"{self.base}.{name}"


def _llama_like(*, tied: bool, mlp: Mlp = _GATED, attention: Attention = Attention()) -> Architecture:
    return Architecture(
        base="model", blocks="model.layers", embedding="model.embed_tokens", tied=tied, mlp=mlp, attention=attention
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(
        "transformer",
        "transformer.h",
        "transformer.wte",
        tied=True,
        layout="conv1d",
        mlp=Mlp(("mlp.c_fc",), "mlp.c_proj"),
        attention=Attention("attn.c_proj"),
        blocks_field="n_layer",
        width_field="n_inner",
    ),
    "opt": Architecture(
        "model",
        "model.decoder.layers",
        "model.decoder.embed_tokens",
        tied=True,
        mlp=Mlp(("fc1",), "fc2"),
        attention=Attention("self_attn.out_proj"),
        width_field="ffn_dim",
    ),
    "gpt_neox": Architecture(
        "gpt_neox",
        "gpt_neox.layers",
        "gpt_neox.embed_in",
        tied=False,
        old_head="embed_out",
        mlp=Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
        attention=Attention("attention.dense"),
    ),
    "llama": _llama_like(tied=False, attention=_DIVIDING_HEADS),
    "mistral": _llama_like(tied=False, attention=_ANY_HEADS),
    "qwen2": _llama_like(tied=False, attention=_ANY_HEADS),
    "qwen3": _llama_like(tied=False, attention=_ANY_HEADS),
    "gemma": _llama_like(tied=True, attention=_ANY_HEADS),
    "gemma2": _llama_like(tied=True, mlp=_NORMED, attention=_NORMED_HEADS),
    "gemma3_text": _llama_like(tied=True, mlp=_NORMED, attention=_NORMED_HEADS),
    "phi": _llama_like(tied=False, mlp=Mlp(("mlp.fc1",), "mlp.fc2"), attention=Attention("self_attn.dense")),
    "phi3": _llama_like(tied=False, mlp=Mlp(("mlp.gate_up_proj",), "mlp.down_proj", stacked=2)),
}


@dataclass(frozen=True)
class Site:
    """A weight matrix that may be replaced by a compact structure.

    `name` is the module's full path in the transformers model. The matrix maps `in_features` to `out_features`,
    whichever way round `layout` stores it. An embedding is described as the output head would be that shares its table:
    `out_features` is the vocabulary, `in_features` the width. `free_outputs`: the rows are hidden units of the MLP,
    which may stand in any order if the rest of the MLP follows; one site of each block sets it.
    """

    name: str
    block: int | None
    out_features: int
    in_features: int
    layout: Layout
    bias: bool
    free_outputs: bool = False


@dataclass(frozen=True)
class Inventory:
    """What a checkpoint holds. `sites` are those inside the blocks; `head` is None where it is tied to the embedding.

    `total_parameters` counts the stored numbers once per distinct tensor: a tied head is free even if a file repeats
    it. `block_parameters` says how many of them each block has. `head_size` is that of an attention head, or None where
    the config cannot say that there are fewer of them.
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

    def sites_of(self, block: int) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.block == block)


def read_config(directory: Path) -> dict[str, Any]:
    """The model's `config.json`. Raises MalformedModel where it is missing or no JSON object."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MalformedModel(f"config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise MalformedModel("config.json does not hold a JSON object.")
    return config


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The table's row for `config["model_type"]`. Raises UnsupportedArchitecture."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"The architecture {model_type!r} is not supported. Supported are: {', '.join(sorted(ARCHITECTURES))}."
        )
    return ARCHITECTURES[model_type]


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output head is the embedding's own table."""
    stated = config.get("tie_word_embeddings")
    return architecture_of(config).tied if stated is None else bool(stated)


def compressed_type(model_type: str) -> str:
    """The model type of a package. Not the original's: transformers would load that without the package's own code."""
    return f"compressed_{model_type}"


def original_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Mapping[str, Any]]]:
    """For a package, the config of its original and the structures by module name; any other config as it is."""
    compression = config.get("compression")
    if not isinstance(compression, Mapping) or config.get("model_type") != compressed_type(
        str(compression.get("base_model_type"))
    ):
        return dict(config), {}
    original = {name: value for name, value in config.items() if name not in ("compression", "auto_map")}
    return original | {"model_type": compression["base_model_type"]}, compression["structures"]


def weights(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Canonical name → stored name of each tensor that is a weight: no old buffers, no repetition of a tied head."""
    architecture = architecture_of(config)
    dropped_head = f"{architecture.head}.weight" if is_tied(config) else None
    found: dict[str, str] = {}
    for name in names:
        canonical = architecture.canonical(name)
        if _STORED_BUFFER.search(canonical) or canonical == dropped_head:
            continue
        if canonical in found:
            raise MalformedModel(f"The tensors {found[canonical]} and {name} are the same weight, {canonical}.")
        found[canonical] = name
    return found


def inventory(config: Mapping[str, Any], tensors: Mapping[str, Shape]) -> Inventory:
    """What a checkpoint with this `config.json` and these tensors (stored name → shape) holds.

    Raises UnsupportedArchitecture, and MalformedModel where the tensors contradict the config or each other.
    """
    architecture = architecture_of(config)
    if config.get("quantization_config"):
        raise MalformedModel("The model is quantised already; compress the unquantised original instead.")
    shapes = {name: tuple(tensors[stored]) for name, stored in weights(config, tensors).items()}
    for name, shape in shapes.items():
        if 0 in shape:
            raise MalformedModel(f"The tensor {name} is empty: its shape is {list(shape)}.")

    embedding = _table(architecture.embedding, "embedding", shapes)
    head = None if is_tied(config) else _table(architecture.head, "linear", shapes)
    blocks = _count_blocks(architecture, shapes)
    hidden_size = _stated_size(config, "hidden_size", "n_embd") or embedding.in_features
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
    )


def _table(name: str, layout: Layout, shapes: Mapping[str, Shape]) -> Site:
    shape = shapes.get(f"{name}.weight")
    if shape is None:
        raise MalformedModel(f"The tensor {name}.weight is missing.")
    if len(shape) != 2:
        raise MalformedModel(f"The tensor {name}.weight has the shape {list(shape)}; a matrix is expected.")
    return Site(name, None, shape[0], shape[1], layout, bias=f"{name}.bias" in shapes)


def _sites(architecture: Architecture, shapes: Mapping[str, Shape]) -> tuple[Site, ...]:
    """The matrices inside the blocks, by block and then in the order of their names."""
    pattern = re.compile(rf"({re.escape(architecture.blocks)}\.(\d+)\..+)\.weight")
    sites = []
    for name, shape in shapes.items():
        match = pattern.fullmatch(name)
        if match is None or len(shape) != 2:
            continue
        out_features, in_features = shape if architecture.layout == "linear" else reversed(shape)
        bias = f"{match[1]}.bias" in shapes
        free = architecture.mlp.sets_order(match[1])
        sites.append(Site(match[1], int(match[2]), out_features, in_features, architecture.layout, bias, free))
    return tuple(sorted(sites, key=lambda site: (site.block, site.name)))


def _head_size(config: Mapping[str, Any], attention: Attention, sites: Iterable[Site]) -> int | None:
    """What the weights say, where the config states the number of heads and all blocks have the same of them."""
    if attention.heads is None or (heads := _stated_size(config, "num_attention_heads")) is None:
        return None
    entering = {
        name: {site.out_features for site in sites if site.name.endswith(f".{name}")}
        for name in (attention.heads.queries, attention.heads.keys, attention.heads.values)
    }
    queries, keys, values = entering.values()
    leaving = {site.in_features for site in sites if site.name.endswith(f".{attention.leaving}")}
    if not len(queries) == len(keys) == 1 or queries != leaving or keys != values:
        return None
    (rows,), (shared_rows,) = queries, keys
    size = rows // heads
    # Of a group of query heads, each reads the same keys and values.
    alike = size > 0 and rows == heads * size and shared_rows % size == 0 and rows % shared_rows == 0
    return size if alike else None


def _count_blocks(architecture: Architecture, shapes: Mapping[str, Shape]) -> int:
    """The number of blocks, having checked that they are numbered from 0 and hold the same tensors."""
    contents: dict[int, set[str]] = {}
    pattern = re.compile(rf"{re.escape(architecture.blocks)}\.(\d+)\.(.+)")
    for name in shapes:
        if match := pattern.fullmatch(name):
            contents.setdefault(int(match[1]), set()).add(match[2])
    if sorted(contents) != list(range(len(contents))) or not contents:
        raise MalformedModel(
            f"The blocks under {architecture.blocks} are not numbered from 0 without gaps: {sorted(contents)}."
        )
    for number, names in contents.items():
        if names != contents[0]:
            odd = sorted(names ^ contents[0])[0]
            raise MalformedModel(
                f"Block {number} and block 0 do not hold the same tensors: {odd} is in only one of them."
            )
    return len(contents)


def _block_parameters(architecture: Architecture, shapes: Mapping[str, Shape], blocks: int) -> tuple[int, ...]:
    counted = [0] * blocks
    for name, shape in shapes.items():
        if match := re.match(rf"{re.escape(architecture.blocks)}\.(\d+)\.", name):
            counted[int(match[1])] += math.prod(shape)
    return tuple(counted)


def _stated_size(config: Mapping[str, Any], *fields: str) -> int | None:
    """The first of these fields that the config states. One left out has the library's default, as the weights show."""
    for field in fields:
        value = config.get(field)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise MalformedModel(f"The field {field} of config.json is {value!r}; a positive whole number is expected.")
        return value
    return None


def _check_sizes(config: Mapping[str, Any], embedding: Site, head: Site | None, blocks: int, hidden_size: int) -> None:
    vocab_size = _stated_size(config, "vocab_size")
    width = _stated_size(config, "word_embed_proj_dim") or hidden_size
    stated_blocks = _stated_size(config, "num_hidden_layers", "n_layer")
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
