"""Plan fewer blocks and narrower MLPs: parameter counts, the resized config, and the new names of tensors.

Torch-free. Blocks are numbered, and parameters counted, as in the given inventory: the original's, or that of a
`models.EditedModel`.

Promise: the architecture's own code reads the resized config, so the result opens without code of ours.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelpress.spec.architectures import architecture_named, architecture_of
from modelpress.spec.errors import UnsupportedArchitecture
from modelpress.spec.heads import Heads
from modelpress.spec.inventory import Inventory, Site
from modelpress.spec.ranges import TOLERANCE, Range, RatioOutOfRange

WIDTH_FLOOR = 1 / 4
"""The least fraction of its hidden units that an MLP keeps."""

UNITS_STEP = 8
"""Hidden units are a multiple of this if the target allows, because matrix products are then fastest."""


def has_narrowable_mlps(inventory: Inventory) -> bool:
    """Return whether every block has an MLP of the same width, of which the config can state another."""
    leaving = [site for site in _mlp_sites(inventory) if _leaves(inventory, site)]
    everywhere = {site.block for site in leaving} == {site.block for site in inventory.sites}
    alike = everywhere and len(intermediate_sizes(inventory)) == 1
    return alike and architecture_named(inventory.model_type).width_field is not None


def intermediate_sizes(inventory: Inventory) -> set[int]:
    """Return the numbers of hidden units that the MLPs have."""
    return {site.in_features for site in _mlp_sites(inventory) if _leaves(inventory, site)}


def intermediate_size(inventory: Inventory) -> int:
    """Return the number of hidden units of each MLP. Raises ValueError if the MLPs differ in it."""
    sizes = intermediate_sizes(inventory)
    if len(sizes) != 1:
        raise ValueError(f"the MLPs of the blocks are not equally wide: {sorted(sizes)}")
    return sizes.pop()


def resized_parameters(inventory: Inventory, removed: Collection[int], size: int) -> int:
    """Return the parameters of the model without the blocks `removed` and with `size` hidden units per MLP."""
    narrower = (intermediate_size(inventory) - size) * _per_unit(inventory, removed)
    return parameters_without(inventory, removed) - narrower


def parameters_without(inventory: Inventory, removed: Collection[int]) -> int:
    """Return the parameters of the model without the blocks `removed`."""
    return inventory.total_parameters - sum(inventory.block_parameters[block] for block in removed)


def narrowed(inventory: Inventory, size: int) -> Inventory:
    """Return the inventory with `size` hidden units per MLP."""
    present = intermediate_size(inventory)

    def resized(site: Site) -> Site:
        if site.name not in changing:
            return site
        if _leaves(inventory, site):
            return replace(site, in_features=size)
        return replace(site, out_features=site.out_features // present * size)

    changing = {site.name for site in _mlp_sites(inventory)}
    total = resized_parameters(inventory, (), size)
    return replace(inventory, sites=tuple(resized(site) for site in inventory.sites), total_parameters=total)


def intermediate_size_for(inventory: Inventory, target_ratio: float, removed: Collection[int] = ()) -> int:
    """Return the largest number of hidden units per MLP with which the model meets the compression ratio.

    It is a multiple of UNITS_STEP if that keeps the result within TOLERANCE of the target. The blocks `removed` are
    counted as gone. Raises RatioOutOfRange if narrower MLPs alone cannot reach the ratio.
    """
    feasible = width_range(inventory, removed)
    if target_ratio not in feasible:
        raise RatioOutOfRange(
            f"narrower MLPs reach ratios from {feasible.lowest:.3f} to {feasible.highest:.3f} on this model"
            + (f" without {len(removed)} of its blocks" if removed else "")
            + f"; {target_ratio:g} was asked for"
        )
    budget = int(inventory.total_parameters / target_ratio)
    spare = budget - resized_parameters(inventory, removed, 0)
    exact = spare // _per_unit(inventory, removed)
    rounded = exact - exact % UNITS_STEP
    within = resized_parameters(inventory, removed, rounded) >= budget * (1 - TOLERANCE)
    return rounded if within and rounded >= least_intermediate_size(inventory) else exact


def width_range(inventory: Inventory, removed: Collection[int] = ()) -> Range:
    """Return the compression ratios that narrower MLPs reach without the blocks `removed`.

    The range is from one hidden unit less to WIDTH_FLOOR of them.
    """
    most, least = intermediate_size(inventory) - 1, least_intermediate_size(inventory)
    total = inventory.total_parameters
    lowest, highest = (total / resized_parameters(inventory, removed, size) for size in (most, least))
    return Range(lowest, highest)


def least_intermediate_size(inventory: Inventory) -> int:
    """Return the least number of hidden units that an MLP may keep."""
    return max(1, round(intermediate_size(inventory) * WIDTH_FLOOR))


def _per_unit(inventory: Inventory, removed: Collection[int]) -> int:
    """Return the parameters of one hidden unit in every remaining MLP together: its rows, their biases, its column."""
    size = intermediate_size(inventory)
    numbers = 0
    for site in _mlp_sites(inventory):
        if site.block in removed:
            continue
        if _leaves(inventory, site):
            numbers += site.out_features
        else:
            numbers += site.out_features // size * (site.in_features + site.bias)
    return numbers


def _mlp_sites(inventory: Inventory) -> list[Site]:
    """Return the linear layers of all MLPs."""
    mlp = architecture_named(inventory.model_type).mlp
    names = tuple(f".{name}" for name in (*mlp.entering, mlp.leaving))
    return [site for site in inventory.sites if site.name.endswith(names)]


def _leaves(inventory: Inventory, site: Site) -> bool:
    """Return whether the site is the last linear layer of an MLP."""
    return site.name.endswith(f".{architecture_named(inventory.model_type).mlp.leaving}")


def resized_config(
    config: Mapping[str, Any],
    kept: Sequence[int],
    blocks: int,
    intermediate_size: int | None = None,
    heads: Heads | None = None,
    experts: int | None = None,
) -> dict[str, Any]:
    """Return the config of the model with only the blocks `kept` and the given sizes.

    Every list with one entry per block keeps the entries of the remaining blocks. A list that the config leaves to
    transformers' default is not resized: the caller must add it to `config` first.

    Args:
        config: the original's config.
        kept: the remaining blocks, in order.
        blocks: number of blocks of the original.
        intermediate_size: hidden units per MLP; None keeps the number.
        heads: attention heads per block; None keeps them.
        experts: experts per mixture; None keeps them.

    Raises:
        UnsupportedArchitecture: if the model type is not registered, its config cannot state the width of an MLP, or
            what a block computes depends on its number.
    """
    architecture = architecture_of(config)
    resized = dict(config)
    if intermediate_size is not None:
        if architecture.width_field is None:
            raise UnsupportedArchitecture(f"The config of {architecture.model_type} cannot state the width of an MLP.")
        resized[architecture.width_field] = intermediate_size
    if heads is not None and heads.queries != config["num_attention_heads"]:
        # Without `head_dim` the width of a head would be computed from the number of heads.
        resized |= {
            "num_attention_heads": heads.queries,
            "num_key_value_heads": heads.key_values,
            "head_dim": heads.size,
        }
    if experts is not None and architecture.experts is not None:
        fields = architecture.experts.count_fields
        resized |= dict.fromkeys([field for field in fields if field in config] or fields[:1], experts)
    if len(kept) == blocks:
        return resized
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedArchitecture(
            "No block of this model can be removed, because config.json scales attention by the block's number "
            "(scale_attn_by_inverse_layer_idx); choose a method that keeps all blocks, such as low_rank."
        )
    # GPT-2's config may use transformers' common name instead of its own.
    resized.pop("num_hidden_layers", None)
    resized[architecture.blocks_field] = len(kept)
    for field, value in config.items():
        # The name is checked as well, because a list of end tokens may happen to have the same length.
        if isinstance(value, list) and len(value) == blocks and "layer" in field:
            resized[field] = [value[index] for index in kept]
    if isinstance(last_full := config.get("max_window_layers"), int):
        resized["max_window_layers"] = sum(index < last_full for index in kept)
    return resized


def renumbered(name: str, prefix: str, kept: Sequence[int]) -> str:
    """Return the new name of a module or tensor in the model with only the blocks `kept`.

    `prefix` is the full name of the list of blocks. Raises ValueError if the block is not kept.
    """
    match = re.match(rf"{re.escape(prefix)}\.(\d+)(?=\.|$)", name)
    if match is None:
        return name
    return f"{prefix}.{kept.index(int(match[1]))}{name[match.end() :]}"


def original_name(name: str, prefix: str, kept: Sequence[int]) -> str:
    """Return the original's name of a module or tensor of the model with only the blocks `kept`.

    This is the inverse of `renumbered`.
    """
    match = re.match(rf"{re.escape(prefix)}\.(\d+)(?=\.|$)", name)
    if match is None:
        return name
    return f"{prefix}.{kept[int(match[1])]}{name[match.end() :]}"


def block_of(name: str, prefix: str) -> int | None:
    """Return the number of the block that a module or tensor belongs to; None if it is outside the blocks.

    `prefix` is the full name of the list of blocks.
    """
    match = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
    return int(match[1]) if match else None
