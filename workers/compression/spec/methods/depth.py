"""The common base of methods that remove blocks first and narrow the MLPs for the rest of the target."""

from abc import abstractmethod
from typing import ClassVar

from workers.compression.spec.dimensions import (
    intermediate_size,
    intermediate_size_for,
    resized_parameters,
    width_range,
)
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.methods.base import Leaves, Measured, Options, PlanningMethod
from workers.compression.spec.methods.errors import MethodDoesNotFit
from workers.compression.spec.plan import Plan
from workers.compression.spec.ranges import TOLERANCE, Range
from workers.compression.spec.steps import Narrow, Step

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

    def range(self, inventory: Inventory, options: Options) -> Range:
        if inventory.numbered_blocks:
            raise MethodDoesNotFit(
                "no block can be removed: config.json scales attention by the block's number "
                "(scale_attn_by_inverse_layer_idx)"
            )
        gone = range(_most_blocks(inventory))
        return Range(width_range(inventory).lowest, width_range(inventory, gone).highest)

    def plan(self, inventory: Inventory, ratio: float, options: Options, measured: Measured) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        removed = range(_blocks_to_remove(inventory, ratio))
        steps = self.removal(len(removed), options) if removed else ()
        after = resized_parameters(inventory, removed, intermediate_size(inventory))
        if not removed or not _is_met(inventory, ratio, after):
            size = intermediate_size_for(inventory, ratio, removed)
            after = resized_parameters(inventory, removed, size)
            steps = (*steps, Narrow(intermediate_size=size))
        before = inventory.total_parameters
        return Plan(method=self.name, steps=steps, parameters_before=before, parameters_after=after)


def _blocks_to_remove(inventory: Inventory, ratio: float) -> int:
    """Return the largest number of blocks whose removal meets the target, alone or together with narrower MLPs."""
    whole = intermediate_size(inventory)
    counts = range(_most_blocks(inventory), 0, -1)
    return next(
        (
            count
            for count in counts
            if _is_met(inventory, ratio, resized_parameters(inventory, range(count), whole))
            or ratio in width_range(inventory, range(count))
        ),
        0,
    )


def _is_met(inventory: Inventory, ratio: float, after: int) -> bool:
    """Return whether a model with `after` stored parameters meets the ratio within TOLERANCE."""
    wanted = inventory.total_parameters / ratio
    return abs(after - wanted) <= TOLERANCE * wanted


def _most_blocks(inventory: Inventory) -> int:
    """Return the largest number of blocks that may be removed."""
    return int(inventory.blocks * (1 - BLOCKS_FLOOR))
