"""Keep the structure, and reach the ratio by fewer bits a weight alone."""

from typing import ClassVar, Literal

from modelpress.spec.inventory import Inventory
from modelpress.spec.methods.base import Leaves, Measured, MethodOptions, Need, PlanningMethod
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import Range


class QuantisationOptions(MethodOptions):
    """Options of the method `quantisation`, which has none: the recipe's `precision` and `formats` say the rest."""

    name: Literal["quantisation"] = "quantisation"


class QuantisationMethod(PlanningMethod[QuantisationOptions]):
    """A method that changes no structure: its plan has no step, and the stage `quantise` does all of the work."""

    name: ClassVar[str] = "quantisation"
    title: ClassVar[str] = "fewer bits a weight"
    description: ClassVar[str] = (
        "Keeps every matrix and rounds its weights to 8 to 3 bits, each matrix to as many as pay. Which engines open "
        "the result depends on the format."
    )
    paper: ClassVar[str | None] = "arXiv 2210.17323"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    leaves: ClassVar[Leaves] = Leaves.PLAIN
    options = QuantisationOptions

    def range(self, inventory: Inventory, options: QuantisationOptions) -> Range:
        return Range(1.0, 1.0)

    def plan(self, inventory: Inventory, ratio: float, options: QuantisationOptions, measured: Measured) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        total = inventory.total_parameters
        return Plan(method=self.name, steps=(), parameters_before=total, parameters_after=total)


QUANTISATION = QuantisationMethod()
