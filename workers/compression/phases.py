"""Compression in phases: factor some matrices, train the whole model, then factor the next ones.

    for phase in phases(model.inventory, plan, 3):
        for done in compress(EditedModel(model, kept), phase.plan, ids, parts):
            ...                 # `parts` are those of the phase, `kept` all those before it
        ...                     # train EditedModel(model, [*kept, *parts]).whole(), and keep that as one more part

TQCompressor calls this multi-step compression (arXiv 2401.16367): each matrix is factored in a model that has recovered
from the earlier factorisations. Its released configuration goes from the embedding to the MLPs and halves the embedding
once more. Here the embedding is factored once and blocks go from first to last, the order in which each part is fitted
to what the parts before it have become. The plan is made once, for the original, so that its target is met.
"""

from dataclasses import dataclass
from itertools import pairwise

from modelpress.spec.inventory import Inventory
from modelpress.spec.plan import Plan
from modelpress.spec.steps import Factor


@dataclass(frozen=True)
class Phase:
    """A part of a plan and the training after it.

    Parts are numbered across all phases: the phase's own from `first` on, then `trained`, the part that its training
    leaves.
    """

    number: int
    plan: Plan
    first: int
    trained: int


def phases(inventory: Inventory, plan: Plan, count: int = 1) -> tuple[Phase, ...]:
    """Split a plan into `count` phases whose numbers of factored parts differ by at most one.

    A plan that factors fewer parts gets as many phases as parts. Raises ValueError for several phases of a plan that
    does more than factor.
    """
    if count == 1:
        return (Phase(0, plan, 0, len(plan.labels(inventory))),)
    factor = plan.step(Factor)
    if factor is None or len(plan.steps) > 1:
        raise ValueError(
            "only a plan that does nothing but factor can be split into several phases; use a single phase"
        )
    planned = sorted({factor.part_of(site, inventory) for site in factor.structures})
    count = max(1, min(count, len(planned)))
    starts = [planned[len(planned) * number // count] for number in range(1, count)]
    bounds = [0, *starts, len(plan.labels(inventory))]
    return tuple(
        Phase(number, _between(plan, factor, start, stop), start + number, stop + number)
        for number, (start, stop) in enumerate(pairwise(bounds))
    )


def _between(plan: Plan, factor: Factor, start: int, stop: int) -> Plan:
    """Return the plan that factors only the parts from `start` up to, not including, `stop`."""
    return plan.model_copy(update={"steps": (factor.model_copy(update={"first": start, "last": stop}),)})
