"""Fewer blocks and narrower MLPs: what they store, what config.json says of them and of fewer heads, how their tensors
are then named.

Torch-free. Blocks are numbered, and parameters counted, as in the inventory that is given: the original's, or that of
a `models.EditedModel`.

Promise: the resized config is one that the architecture's own code reads, so nothing of ours is needed to open it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workers.compression.spec.architectures import ARCHITECTURES, architecture_of
from workers.compression.spec.errors import UnsupportedArchitecture
from workers.compression.spec.heads import Heads
from workers.compression.spec.inventory import Inventory, Site
from workers.compression.spec.ranges import TOLERANCE, Range, RatioOutOfRange

WIDTH_FLOOR = 1 / 4
"""The least part of its hidden units that an MLP keeps."""

UNITS_STEP = 8
"""Matrix products are fastest where sizes are multiples of this; the target matters more."""


def intermediate_size(inventory: Inventory) -> int:
    """The hidden units of each MLP. Raises ValueError where they are not equally wide."""
    sizes = {site.in_features for site in _mlp_sites(inventory) if _leaves(inventory, site)}
    if len(sizes) != 1:
        raise ValueError(f"the MLPs of the blocks are not equally wide: {sorted(sizes)}")
    return sizes.pop()


def resized_parameters(inventory: Inventory, removed: Collection[int], size: int) -> int:
    """The stored numbers of the model without the blocks `removed` and with that many hidden units per MLP."""
    gone = sum(inventory.block_parameters[block] for block in removed)
    return inventory.total_parameters - gone - (intermediate_size(inventory) - size) * _per_unit(inventory, removed)


def narrowed(inventory: Inventory, size: int) -> Inventory:
    """The inventory with that many hidden units per MLP."""
    present = intermediate_size(inventory)

    def resized(site: Site) -> Site:
        if site not in changing:
            return site
        if _leaves(inventory, site):
            return replace(site, in_features=size)
        return replace(site, out_features=site.out_features // present * size)

    changing = _mlp_sites(inventory)
    total = resized_parameters(inventory, (), size)
    return replace(inventory, sites=tuple(resized(site) for site in inventory.sites), total_parameters=total)


def intermediate_size_for(inventory: Inventory, target_ratio: float, removed: Collection[int] = ()) -> int:
    """The most hidden units with which the model meets the ratio of stored parameters, before / after.

    A multiple of UNITS_STEP where that stays within TOLERANCE of the target. Raises RatioOutOfRange.
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
    """The ratios that narrower MLPs reach once the blocks `removed` are gone: from one unit less to WIDTH_FLOOR."""
    most, least = intermediate_size(inventory) - 1, least_intermediate_size(inventory)
    total = inventory.total_parameters
    lowest, highest = (total / resized_parameters(inventory, removed, size) for size in (most, least))
    return Range(lowest, highest)


def least_intermediate_size(inventory: Inventory) -> int:
    """The hidden units that an MLP keeps at least."""
    return max(1, round(intermediate_size(inventory) * WIDTH_FLOOR))


def _per_unit(inventory: Inventory, removed: Collection[int]) -> int:
    """What one hidden unit of every remaining MLP stores: its rows, their biases, its column."""
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
    mlp = ARCHITECTURES[inventory.model_type].mlp
    names = tuple(f".{name}" for name in (*mlp.entering, mlp.leaving))
    return [site for site in inventory.sites if site.name.endswith(names)]


def _leaves(inventory: Inventory, site: Site) -> bool:
    return site.name.endswith(f".{ARCHITECTURES[inventory.model_type].mlp.leaving}")


def resized_config(
    config: Mapping[str, Any],
    kept: Sequence[int],
    blocks: int,
    intermediate_size: int | None = None,
    heads: Heads | None = None,
) -> dict[str, Any]:
    """The config of the model that has only the blocks `kept` of its `blocks`, with that many hidden units per MLP and
    those attention heads; None: as before.

    Every list with one entry for each block keeps the entries of the blocks that remain. A list that the file leaves to
    the library's default is not there to be edited: state it first. Raises UnsupportedArchitecture where a block
    computes something else at another place.
    """
    architecture = architecture_of(config)
    resized = dict(config)
    if intermediate_size is not None:
        resized[architecture.width_field] = intermediate_size
    if heads is not None and heads.queries != config["num_attention_heads"]:
        # Left out, a head's size would follow from the number of heads.
        resized |= {
            "num_attention_heads": heads.queries,
            "num_key_value_heads": heads.key_values,
            "head_dim": heads.size,
        }
    if len(kept) == blocks:
        return resized
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedArchitecture(
            "No block can be removed: config.json scales attention by the block's number "
            "(scale_attn_by_inverse_layer_idx)."
        )
    # GPT-2's config may use the library's common name instead of its own.
    resized.pop("num_hidden_layers", None)
    resized[architecture.blocks_field] = len(kept)
    for field, value in config.items():
        # By name too: a list of end tokens may happen to be as long.
        if isinstance(value, list) and len(value) == blocks and "layer" in field:
            resized[field] = [value[index] for index in kept]
    if isinstance(last_full := config.get("max_window_layers"), int):
        resized["max_window_layers"] = sum(index < last_full for index in kept)
    return resized


def renumbered(name: str, prefix: str, kept: Sequence[int]) -> str:
    """The name of a module or tensor once only the blocks `kept` remain; `prefix` is the path of the blocks."""
    match = re.match(rf"{re.escape(prefix)}\.(\d+)(?=\.|$)", name)
    if match is None:
        return name
    return f"{prefix}.{kept.index(int(match[1]))}{name[match.end() :]}"


def original_name(name: str, prefix: str, kept: Sequence[int]) -> str:
    """The name before only the blocks `kept` remained: the inverse of `renumbered`."""
    match = re.match(rf"{re.escape(prefix)}\.(\d+)(?=\.|$)", name)
    if match is None:
        return name
    return f"{prefix}.{kept[int(match[1])]}{name[match.end() :]}"


def block_of(name: str, prefix: str) -> int | None:
    """The number of the block that a module or tensor lies in; None outside the blocks."""
    match = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
    return int(match[1]) if match else None
