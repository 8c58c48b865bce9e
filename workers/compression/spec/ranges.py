"""Which ratios each method reaches on a model, whatever kind of method it is. Free of torch: POST asks it."""

from workers.compression.spec.catalog import AUTO, CANDIDATES, PRESETS, RESIZINGS
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.plans import Range, feasible_range
from workers.compression.spec.presets import preset_range
from workers.compression.spec.sizes import resizing_range


def range_of(inventory: Inventory, name: str, key_value_heads: int | None = None) -> Range:
    """The lowest and highest target ratio of a method; of one that resizes, where that many key/value heads are to be
    left. Raises UnknownMethod, PresetDoesNotFit, HeadsDoNotFit.
    """
    if name == AUTO:
        ranges = [range_of(inventory, candidate) for candidate in CANDIDATES]
        return Range(min(each.lowest for each in ranges), max(each.highest for each in ranges))
    if name in RESIZINGS:
        return resizing_range(inventory, name, key_value_heads)
    if name in PRESETS:
        return preset_range(inventory, name)
    return feasible_range(inventory, name)


def candidates(inventory: Inventory, target_ratio: float) -> tuple[str, ...]:
    """The methods among which `auto` chooses that reach the ratio on the model."""
    return tuple(name for name in CANDIDATES if target_ratio in range_of(inventory, name))
