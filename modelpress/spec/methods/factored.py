"""The common base of methods that only replace matrices by compact structures."""

from typing import ClassVar

from modelpress.spec.budgets import Curve, allocate, rank_curve, uniform_structures
from modelpress.spec.families import Family, stored_parameters
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods.base import Leaves, Measured, Need, Options, PlanningMethod
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import Range
from modelpress.spec.steps import Factor
from modelpress.spec.structures import Structure


class FactoredMethod(PlanningMethod[Options]):
    """A method whose plan is a single `Factor` step.

    Attributes:
        family: the structures that matrices may take; see `family_of`.
        compensation: the `compensation` of the step.
    """

    leaves: ClassVar[Leaves] = Leaves.FACTORED
    phased: ClassVar[bool] = True
    family: ClassVar[Family]
    compensation: ClassVar[float] = 0.5

    def family_of(self, options: Options) -> Family:
        """Return the family of structures that matrices may take under these options."""
        return self.family

    def range(self, inventory: Inventory, options: Options) -> Range:
        return self.family_of(options).range(inventory)

    def plan(self, inventory: Inventory, ratio: float, options: Options, measured: Measured) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        before = inventory.total_parameters
        structures = self.structures(inventory, round(before / ratio), options, measured)
        step = Factor(structures=structures, compensation=self.compensation)
        return Plan(
            method=self.name,
            steps=(step,),
            parameters_before=before,
            parameters_after=stored_parameters(inventory, structures),
        )

    def structures(
        self, inventory: Inventory, budget: int, options: Options, measured: Measured
    ) -> dict[str, Structure]:
        """Return {site: structure} for a model of `budget` stored parameters."""
        family = self.family_of(options)
        if Need.SENSITIVITIES not in self.needs:
            return uniform_structures(inventory, family, budget)
        taken = sum(site.out_features * site.in_features for site in family.sites(inventory))
        return allocate(self.curves(inventory, options, measured), budget - inventory.total_parameters + taken)

    def curves(self, inventory: Inventory, options: Options, measured: Measured) -> dict[str, Curve[Structure]]:
        """Return {site: curve} of the structures that each site may take and their measured cost."""
        family = self.family_of(options)
        return {site.name: rank_curve(family, site, measured[site.name].spectrum) for site in family.sites(inventory)}
