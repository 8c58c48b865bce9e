"""Remove experts from the mixtures of a model. The result has the original's architecture."""

import math
from typing import ClassVar, Literal

from modelpress.spec.architectures import architecture_named
from modelpress.spec.architectures.architecture import Architecture
from modelpress.spec.inventory import ExpertCounts, Inventory
from modelpress.spec.methods.base import Leaves, Measured, MethodOptions, PlanningMethod
from modelpress.spec.methods.errors import MethodDoesNotFit
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import TOLERANCE, Range
from modelpress.spec.steps import KeepExperts, Refit

EXPERTS_FLOOR = 1 / 4
"""The least fraction of its experts that a mixture keeps."""

LEAST_IN_GROUP = 2
"""The least number of experts in each group of a grouped router, which scores a group by its best two."""


class ExpertsOptions(MethodOptions):
    """Options of the method `experts`, which has none."""

    name: Literal["experts"] = "experts"


class ExpertsMethod(PlanningMethod[ExpertsOptions]):
    """A method that removes, from every mixture, the experts that contribute least to its output."""

    name: ClassVar[str] = "experts"
    title: ClassVar[str] = "fewer experts"
    description: ClassVar[str] = (
        "Removes from every mixture of experts those that contribute least to its output on the calibration text, and "
        "refits shared experts and attention. Experts are whole, so the model becomes smaller than asked for by up to "
        "one expert of each block. Leaves an ordinary checkpoint."
    )
    paper: ClassVar[str | None] = "after arXiv 2510.13999"
    leaves: ClassVar[Leaves] = Leaves.PLAIN
    options = ExpertsOptions

    def takes(self, architecture: Architecture) -> bool:
        return architecture.experts is not None and architecture.experts.module is not None

    def range(self, inventory: Inventory, options: ExpertsOptions) -> Range:
        counts = self._counts(inventory)
        total = inventory.total_parameters
        highest = total / _parameters_with(inventory, counts, _least(counts))
        first = total / _parameters_with(inventory, counts, counts.total - counts.groups)
        # A smaller ratio than that of the first expert is reached, too, and exceeded.
        return Range(min(1 + TOLERANCE, first), highest)

    def plan(self, inventory: Inventory, ratio: float, options: ExpertsOptions, measured: Measured) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        counts, before = self._counts(inventory), inventory.total_parameters
        smaller = range(counts.total - counts.groups, _least(counts) - 1, -counts.groups)
        budget = before / ratio * (1 + TOLERANCE)
        count = next((each for each in smaller if _parameters_with(inventory, counts, each) <= budget), smaller[-1])
        steps = (KeepExperts(count=count), Refit(everywhere=True))
        after = _parameters_with(inventory, counts, count)
        return Plan(method=self.name, steps=steps, parameters_before=before, parameters_after=after)

    def _counts(self, inventory: Inventory) -> ExpertCounts:
        """Return the experts of the model. Raises MethodDoesNotFit if none can be removed."""
        architecture, counts = architecture_named(inventory.model_type), inventory.experts
        if counts is None:
            raise MethodDoesNotFit("this model is no mixture of experts; send low_rank")
        if not self.takes(architecture):
            raise MethodDoesNotFit(
                f"the experts of {inventory.model_type} cannot be told apart while they compute; send low_rank"
            )
        if _least(counts) > counts.total - counts.groups:
            raise MethodDoesNotFit(
                f"none of the {counts.total} experts can go, since each token is sent to {counts.chosen}; send low_rank"
            )
        return counts


def _least(counts: ExpertCounts) -> int:
    """Return the least number of experts that a mixture may keep, a multiple of the number of groups."""
    in_group = max(counts.chosen, counts.total * EXPERTS_FLOOR) / counts.groups
    return counts.groups * max(LEAST_IN_GROUP if counts.groups > 1 else 1, math.ceil(in_group))


def _parameters_with(inventory: Inventory, counts: ExpertCounts, count: int) -> int:
    """Return the parameters of the model with `count` experts in each mixture."""
    return inventory.total_parameters - (counts.total - count) * sum(counts.parameters)


EXPERTS = ExpertsMethod()
