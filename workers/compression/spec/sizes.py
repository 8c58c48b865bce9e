"""How many blocks and how many hidden units a target ratio leaves, for the methods that keep the architecture.

Torch-free: the service asks it at POST. The blocks of a model are alike, so what goes is counted before it is known
which. How many key/value heads stay is not derived from the ratio: it is asked for, or all do.
"""

import math
from dataclasses import replace

from workers.compression.spec.catalog import Resizing, resizing
from workers.compression.spec.dimensions import intermediate_size as present_size
from workers.compression.spec.dimensions import (
    intermediate_size_for,
    least_intermediate_size,
    narrowed,
    resized_parameters,
    width_range,
)
from workers.compression.spec.heads import regrouped
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.plans import TOLERANCE, Plan, Range, RatioOutOfRange, feasible_range

BLOCKS_FLOOR = 1 / 2
"""The least part of its blocks that a model keeps."""


def resizing_range(inventory: Inventory, name: str, key_value_heads: int | None = None) -> Range:
    """The lowest and highest target ratio that the method reaches on the model, where that many key/value heads are to
    be left of it. Raises UnknownMethod, HeadsDoNotFit.
    """
    chosen = resizing(name)
    if key_value_heads is not None:
        narrower = regrouped(inventory, key_value_heads)
        reached = inventory.total_parameters / narrower.total_parameters
        return Range(reached, reached * resizing_range(narrower, name).highest)
    if chosen.factors is not None:
        return _shared_range(inventory, chosen.factors)
    gone = range(_most_blocks(inventory, chosen))
    return Range(width_range(inventory).lowest, width_range(inventory, gone).highest)


def resized_plan(inventory: Inventory, name: str, target_ratio: float, key_value_heads: int | None = None) -> Plan:
    """The plan that meets the target within TOLERANCE: as many blocks as the method gives up, then narrower MLPs. Where
    only that many key/value heads are to be left, it counts what goes with the others first.

    Raises RatioOutOfRange, UnknownMethod, HeadsDoNotFit.
    """
    chosen, feasible = resizing(name), resizing_range(inventory, name, key_value_heads)
    if target_ratio not in feasible:
        raise RatioOutOfRange(
            f"{name} reaches ratios from {feasible.lowest:.3f} to {feasible.highest:.3f} on this model; "
            f"{target_ratio:g} was asked for"
        )
    if key_value_heads is not None:
        return _regrouped_plan(inventory, name, target_ratio, key_value_heads)
    total, whole = inventory.total_parameters, present_size(inventory)
    if chosen.factors is not None:
        size = intermediate_size_for(inventory, math.sqrt(target_ratio))
        return Plan(name, {}, total, round(total / target_ratio), intermediate_size=size, factors=chosen.factors)
    removed = _blocks_to_remove(inventory, chosen, target_ratio)
    criterion = chosen.criterion if removed else None
    after = resized_parameters(inventory, range(removed), whole)
    if abs(after - total / target_ratio) <= TOLERANCE * total / target_ratio:
        return Plan(name, {}, total, after, removed=removed, criterion=criterion)
    size = intermediate_size_for(inventory, target_ratio, range(removed))
    after = resized_parameters(inventory, range(removed), size)
    return Plan(name, {}, total, after, removed=removed, intermediate_size=size, criterion=criterion)


def _regrouped_plan(inventory: Inventory, name: str, target_ratio: float, key_value_heads: int) -> Plan:
    narrower = regrouped(inventory, key_value_heads)
    total, after = inventory.total_parameters, narrower.total_parameters
    rest = target_ratio * after / total
    if rest <= 1 + TOLERANCE:
        return Plan(name, {}, total, after, key_value_heads=key_value_heads)
    # On a tiny model a single hidden unit may be more than the tolerance.
    plan = resized_plan(narrower, name, max(rest, resizing_range(narrower, name).lowest))
    return replace(plan, parameters_before=total, key_value_heads=key_value_heads)


def _shared_range(inventory: Inventory, factors: str) -> Range:
    """Where width and factors can bear half of the target each, on a logarithmic scale.

    What factors reach depends on the width; what they reach at the narrowest holds for all.
    """
    width = width_range(inventory)
    factored = feasible_range(narrowed(inventory, least_intermediate_size(inventory)), factors)
    # Hidden units are whole, so the width may take a little more than its half and leave the factors a little less.
    lowest = max(width.lowest, factored.lowest * (1 + TOLERANCE)) ** 2
    return Range(lowest, min(width.highest, factored.highest) ** 2)


def _blocks_to_remove(inventory: Inventory, chosen: Resizing, target_ratio: float) -> int:
    """The most blocks whose removal leaves no less than the target asks for, within the tolerance."""
    budget = inventory.total_parameters / target_ratio * (1 - TOLERANCE)
    whole = present_size(inventory)
    counts = range(_most_blocks(inventory, chosen), -1, -1)
    return next(count for count in counts if resized_parameters(inventory, range(count), whole) >= budget)


def _most_blocks(inventory: Inventory, chosen: Resizing) -> int:
    return int(inventory.blocks * (1 - BLOCKS_FLOOR)) if chosen.fuses else 0
