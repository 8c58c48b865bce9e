"""What headers and config.json show about a checkpoint before any number is read: foreign kinds of tensors, and shapes
that the config does not build. Torch-free, for the API.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from modelpress.spec.architectures import architecture_named, find_architecture
from modelpress.spec.config import stated_size
from modelpress.spec.errors import MalformedModel
from modelpress.spec.headers import StoredTensor
from modelpress.spec.inventory import Inventory, Site, weights
from modelpress.spec.stated import check_stated

FLOATING = ("F64", "F32", "F16", "BF16")

_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|input_scale|SCB)$"
    r"|\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$"
)
_FOREIGN = (
    (re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\b"), "an adapter; merge it first"),
    (re.compile(r"^(v_head|score|classifier|reward_head|value_head)\."), "a head other than that of a language model"),
    (re.compile(r"^(mtp|model\.mtp)\."), "a module that predicts several tokens at once"),
    (re.compile(r"^(module|_orig_mod|model\.model)\."), "a wrapper around the model; save the model inside it"),
)


def check_kinds(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Check that all that is stored are plain weights of a language model.

    Raises:
        MalformedModel: a tensor is of a quantised checkpoint, of an adapter or of another head, or a weight is stored
            in something other than floating point of 16 bits or more.
    """
    architecture = find_architecture(config.get("model_type"))
    for name in tensors:
        if architecture is not None and architecture.leaves_out(name, config):
            continue
        if _QUANTISED.search(name):
            raise MalformedModel(
                f"Its weights are quantised: it holds the tensor {name}. Send the original that it was made from."
            )
        for pattern, what in _FOREIGN:
            if pattern.search(name):
                raise MalformedModel(f"The tensor {name} belongs to {what}.")
    if architecture is None:
        return
    for name in weights(config, tensors).values():
        if (dtype := tensors[name].dtype) not in FLOATING:
            raise MalformedModel(
                f"The tensor {name} is stored as {dtype}; supported are {', '.join(FLOATING)}. "
                "If its weights are quantised, send the original that it was made from."
            )


def check_agreement(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], found: Inventory) -> None:
    """Check that the weights are those of the model that config.json describes, as far as that shows unbuilt.

    Raises:
        MalformedModel: a matrix is missing, blocks differ in a shape, a size in config.json is not that of the
            weights, or it states something that `check_stated` refuses.
    """
    _check_matrices(found)
    _check_alike(found, {name: tuple(shapes[stored]) for name, stored in weights(config, shapes).items()})
    _check_mlp(config, found)
    _check_heads(config, found)
    _check_padding(config, found)
    check_stated(config)


def _check_matrices(found: Inventory) -> None:
    """Raise MalformedModel where the blocks lack a matrix of their attention or their MLP."""
    architecture = architecture_named(found.model_type)
    if architecture.mixed:
        return
    heads, experts = architecture.attention.heads, architecture.experts
    needed = {architecture.attention.leaving} | (set() if experts else set(architecture.mlp.sites))
    needed |= {heads.queries, heads.keys, heads.values} if heads else set()
    held = {site.name.removeprefix(f"{found.block_prefix}.0.") for site in found.sites_of(0)}
    if missing := sorted(needed - held):
        raise MalformedModel(f"The blocks lack the matrix {missing[0]}.weight.")


def _check_alike(found: Inventory, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if architecture_named(found.model_type).mixed:
        return
    pattern = re.compile(rf"{re.escape(found.block_prefix)}\.(\d+)\.(.+)")
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if (match := pattern.fullmatch(name)) is None:
            continue
        block, first = seen.setdefault(match[2], (match[1], shape))
        if shape != first:
            raise MalformedModel(
                f"The blocks differ in size: {match[2]} has the shape {list(first)} in block {block} and {list(shape)} "
                f"in block {match[1]}; the architecture has blocks of one size."
            )


def _check_mlp(config: Mapping[str, Any], found: Inventory) -> None:
    architecture = architecture_named(found.model_type)
    stated = None if architecture.width_field is None else config.get(architecture.width_field)
    if stated is None:
        return
    for site in found.sites:
        held: float | None = None
        if _named(site, [architecture.mlp.leaving]):
            held = site.in_features
        elif _named(site, architecture.mlp.entering):
            held = site.out_features / architecture.mlp.stacked
        if held not in (None, stated):
            raise MalformedModel(
                f"config.json states {stated!r} as {architecture.width_field}, but {site.name}.weight is for {held:g}."
            )


def _check_heads(config: Mapping[str, Any], found: Inventory) -> None:
    matrices = architecture_named(found.model_type).attention.heads
    heads = config.get("num_attention_heads", config.get("n_head"))
    if heads is None:
        return
    if type(heads) is not int or heads < 1:
        raise MalformedModel(f"num_attention_heads of config.json is {heads!r}; a positive whole number is expected.")
    derived = matrices is None and config.get("head_dim") is None
    if (derived or (matrices is not None and matrices.divides_width)) and found.hidden_size % heads:
        raise MalformedModel(f"{heads} attention heads do not divide the width of {found.hidden_size} in config.json.")
    if matrices is None:
        return
    shared = config.get("num_key_value_heads") or heads
    if type(shared) is not int or shared < 1 or heads % shared:
        raise MalformedModel(f"num_key_value_heads of config.json is {shared!r}, which does not divide {heads} heads.")
    rows = {
        name: site.out_features
        for name in (matrices.queries, matrices.keys, matrices.values)
        for site in found.sites_of(0)
        if _named(site, [name])
    }
    # Left out, the size of a head follows from the width in one architecture and is a constant in another.
    size = stated_size(config, "head_dim") or rows.get(matrices.queries, 0) // heads
    for name, held in rows.items():
        count = heads if name == matrices.queries else shared
        if held != count * size:
            raise MalformedModel(
                f"config.json states {count} heads for {name}, of the size {size}, but its weight has {held} rows."
            )


def _check_padding(config: Mapping[str, Any], found: Inventory) -> None:
    padding = config.get("pad_token_id")
    if padding is not None and (type(padding) is not int or not -found.vocab_size <= padding < found.vocab_size):
        raise MalformedModel(
            f"config.json states the pad_token_id {padding!r}, but the embedding has {found.vocab_size} rows."
        )


def _named(site: Site, inner_names: Iterable[str]) -> bool:
    return site.name.endswith(tuple(f".{name}" for name in inner_names))
