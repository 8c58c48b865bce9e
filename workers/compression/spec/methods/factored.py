"""What methods share that do nothing but replace matrices by compact structures."""

from typing import ClassVar

from workers.compression.spec.budgets import allocate, rank_curve, uniform_structures
from workers.compression.spec.families import Family, stored_parameters
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.methods.base import Leaves, Need, Options, PlanningMethod, Spectra
from workers.compression.spec.plan import Plan
from workers.compression.spec.ranges import Range
from workers.compression.spec.steps import Factor
from workers.compression.spec.structures import Structure


class FactoredMethod(PlanningMethod[Options]):
    """A method that plans a single step, `Factor`. `compensation` is that of the step."""

    leaves: ClassVar[Leaves] = Leaves.FACTORED
    phased: ClassVar[bool] = True
    family: ClassVar[Family]
    compensation: ClassVar[float] = 0.5

    def range(self, inventory: Inventory, options: Options) -> Range:
        return self.family.range(inventory)

    def plan(self, inventory: Inventory, ratio: float, options: Options, measured: Spectra) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        before = inventory.total_parameters
        structures = self.structures(inventory, round(before / ratio), measured)
        step = Factor(structures=structures, compensation=self.compensation)
        return Plan(
            method=self.name,
            steps=(step,),
            parameters_before=before,
            parameters_after=stored_parameters(inventory, structures),
        )

    def structures(self, inventory: Inventory, budget: int, measured: Spectra) -> dict[str, Structure]:
        """Return the structure of each site, by name, such that the whole model stores `budget` numbers."""
        if Need.SENSITIVITIES not in self.needs:
            return uniform_structures(inventory, self.family, budget)
        sites = {site.name: site for site in self.family.sites(inventory)}
        curves = {name: rank_curve(self.family, site, measured[name]) for name, site in sites.items()}
        fixed = inventory.total_parameters - sum(site.out_features * site.in_features for site in sites.values())
        return allocate(curves, budget - fixed)
