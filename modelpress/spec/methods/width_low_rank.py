"""Narrow the MLPs for one half of the target, and factor matrices for the other."""

import math
from typing import ClassVar, Literal

from modelpress.spec.architectures.architecture import Architecture
from modelpress.spec.dimensions import (
    intermediate_size_for,
    least_intermediate_size,
    narrowed,
    width_range,
)
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods.base import Leaves, Measured, MethodOptions, PlanningMethod
from modelpress.spec.methods.errors import require_narrowable
from modelpress.spec.methods.low_rank import LOW_RANK, LowRankOptions
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import TOLERANCE, Range
from modelpress.spec.steps import FactorToSize, Narrow


class WidthLowRankOptions(MethodOptions):
    """Options of the method `width_low_rank`, which has none."""

    name: Literal["width_low_rank"] = "width_low_rank"


class WidthLowRankMethod(PlanningMethod[WidthLowRankOptions]):
    """A method that makes the model √ratio times smaller by narrower MLPs, then √ratio times by low rank."""

    name: ClassVar[str] = "width_low_rank"
    title: ClassVar[str] = "narrower MLPs, then low rank"
    description: ClassVar[str] = (
        "Narrows the MLPs as `width` does for one half of the target, and factors the matrices as `low_rank` does for "
        "the other half."
    )
    leaves: ClassVar[Leaves] = Leaves.FACTORED
    options = WidthLowRankOptions

    def takes(self, architecture: Architecture) -> bool:
        return architecture.width_field is not None

    def range(self, inventory: Inventory, options: WidthLowRankOptions) -> Range:
        require_narrowable(inventory)
        # The range of the factors depends on the width; their range at the narrowest width holds for all.
        width = width_range(inventory)
        narrowest = narrowed(inventory, least_intermediate_size(inventory))
        factored = LOW_RANK.range(narrowest, LowRankOptions())
        # Hidden units are whole, so the width may take a little more than its half and leave the factors a little less.
        lowest = max(width.lowest, factored.lowest * (1 + TOLERANCE)) ** 2
        return Range(lowest, min(width.highest, factored.highest) ** 2)

    def plan(self, inventory: Inventory, ratio: float, options: WidthLowRankOptions, measured: Measured) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        before = inventory.total_parameters
        after = round(before / ratio)
        steps = (
            Narrow(intermediate_size=intermediate_size_for(inventory, math.sqrt(ratio))),
            FactorToSize(method=LOW_RANK.name, parameters=after),
        )
        return Plan(method=self.name, steps=steps, parameters_before=before, parameters_after=after)


WIDTH_LOW_RANK = WidthLowRankMethod()
