"""Narrow the MLPs and, on request, remove attention heads. The result has the original's architecture."""

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.architectures.architecture import Architecture
from modelpress.spec.dimensions import (
    intermediate_size_for,
    resized_parameters,
    width_range,
)
from modelpress.spec.heads import HeadsDoNotFit, regrouped
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods.base import Leaves, Measured, MethodOptions, PlanningMethod
from modelpress.spec.methods.errors import OptionDoesNotFit, require_narrowable
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import TOLERANCE, Range
from modelpress.spec.steps import Narrow


class WidthOptions(MethodOptions):
    """Options of the method `width`."""

    name: Literal["width"] = "width"
    key_value_heads: int | None = Field(
        None,
        ge=1,
        description="number of key/value heads that each block keeps, with the query heads that share them, for "
        "architectures whose config can state fewer; the MLPs are narrowed for the rest of the ratio; null keeps all "
        "heads",
    )


class WidthMethod(PlanningMethod[WidthOptions]):
    """A method that removes the hidden units that others can best make up for, and refits the down projection."""

    name: ClassVar[str] = "width"
    title: ClassVar[str] = "narrower MLPs"
    description: ClassVar[str] = (
        "Removes the hidden units of the MLPs that the remaining ones can best make up for, and refits the down "
        "projections. Leaves an ordinary checkpoint."
    )
    leaves: ClassVar[Leaves] = Leaves.PLAIN
    options = WidthOptions

    def takes(self, architecture: Architecture) -> bool:
        return architecture.width_field is not None

    def range(self, inventory: Inventory, options: WidthOptions) -> Range:
        require_narrowable(inventory)
        narrower = _with_heads(inventory, options)
        reached = inventory.total_parameters / narrower.total_parameters
        width = width_range(narrower)
        return width if options.key_value_heads is None else Range(reached, reached * width.highest)

    def plan(self, inventory: Inventory, ratio: float, options: WidthOptions, measured: Measured) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        narrower = _with_heads(inventory, options)
        before, after = inventory.total_parameters, narrower.total_parameters
        rest, size = ratio * after / before, None
        if options.key_value_heads is None or rest > 1 + TOLERANCE:
            # `max`, because on a tiny model a single hidden unit may be more than the tolerance.
            size = intermediate_size_for(narrower, max(rest, width_range(narrower).lowest))
            after = resized_parameters(narrower, (), size)
        step = Narrow(intermediate_size=size, key_value_heads=options.key_value_heads)
        return Plan(method=self.name, steps=(step,), parameters_before=before, parameters_after=after)


def _with_heads(inventory: Inventory, options: WidthOptions) -> Inventory:
    """Return the inventory with the number of key/value heads that the options state.

    Raises OptionDoesNotFit if the model cannot have this number.
    """
    if options.key_value_heads is None:
        return inventory
    try:
        return regrouped(inventory, options.key_value_heads)
    except HeadsDoNotFit as error:
        raise OptionDoesNotFit("key_value_heads", str(error)) from error


WIDTH = WidthMethod()
