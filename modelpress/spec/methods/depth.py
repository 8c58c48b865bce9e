"""The common base of methods that remove blocks first and narrow the MLPs for the rest of the target."""

from abc import abstractmethod
from typing import ClassVar

from modelpress.spec.architectures.architecture import Architecture
from modelpress.spec.dimensions import (
    has_narrowable_mlps,
    intermediate_size_for,
    parameters_without,
    resized_parameters,
    width_range,
)
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods.base import Leaves, Measured, Options, PlanningMethod
from modelpress.spec.methods.errors import MethodDoesNotFit
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import TOLERANCE, Range, RatioOutOfRange
from modelpress.spec.steps import Narrow, Step

BLOCKS_FLOOR = 1 / 2
"""The least fraction of its blocks that a model keeps."""


class DepthMethod(PlanningMethod[Options]):
    """A method that removes as many blocks as the target allows, then narrows MLPs.

    The blocks of a model are equally large, so the number to remove is known before the blocks are chosen.
    """

    leaves: ClassVar[Leaves] = Leaves.PLAIN

    @abstractmethod
    def removal(self, count: int, options: Options) -> tuple[Step, ...]:
        """Return the steps that remove `count` blocks, at least one."""

    def takes(self, architecture: Architecture) -> bool:
        return not architecture.fixed_depth

    def range(self, inventory: Inventory, options: Options) -> Range:
        if inventory.blocks_stay is not None:
            raise MethodDoesNotFit(f"no block can be removed: {inventory.blocks_stay}")
        gone = range(_most_blocks(inventory))
        if has_narrowable_mlps(inventory):
            return Range(width_range(inventory).lowest, width_range(inventory, gone).highest)
        total = inventory.total_parameters
        lowest, highest = (total / parameters_without(inventory, removed) for removed in ((0,), gone))
        return Range(lowest, highest)

    def plan(self, inventory: Inventory, ratio: float, options: Options, measured: Measured) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        removed = range(_blocks_to_remove(inventory, ratio))
        steps = self.removal(len(removed), options) if removed else ()
        after = parameters_without(inventory, removed)
        if not removed or not _is_met(inventory, ratio, after):
            size = intermediate_size_for(inventory, ratio, removed)
            after = resized_parameters(inventory, removed, size)
            steps = (*steps, Narrow(intermediate_size=size))
        before = inventory.total_parameters
        return Plan(method=self.name, steps=steps, parameters_before=before, parameters_after=after)


def _blocks_to_remove(inventory: Inventory, ratio: float) -> int:
    """Return the largest number of blocks whose removal meets the target, alone or together with narrower MLPs.

    Raises RatioOutOfRange if the MLPs cannot be narrowed and no number of blocks meets it.
    """
    narrowable = has_narrowable_mlps(inventory)
    for count in range(_most_blocks(inventory), 0, -1):
        if _is_met(inventory, ratio, parameters_without(inventory, range(count))):
            return count
        if narrowable and ratio in width_range(inventory, range(count)):
            return count
    if narrowable:
        return 0
    reached = (inventory.total_parameters / parameters_without(inventory, range(count)) for count in _counts(inventory))
    raise RatioOutOfRange(
        f"the MLPs of this {inventory.model_type} keep their width, so that whole blocks alone reach the ratios "
        f"{', '.join(f'{each:.3f}' for each in reached)}; {ratio:g} was asked for"
    )


def _counts(inventory: Inventory) -> range:
    return range(1, _most_blocks(inventory) + 1)


def _is_met(inventory: Inventory, ratio: float, after: int) -> bool:
    """Return whether a model with `after` stored parameters meets the ratio within TOLERANCE."""
    wanted = inventory.total_parameters / ratio
    return abs(after - wanted) <= TOLERANCE * wanted


def _most_blocks(inventory: Inventory) -> int:
    """Return the largest number of blocks that may be removed."""
    return int(inventory.blocks * (1 - BLOCKS_FLOOR))
