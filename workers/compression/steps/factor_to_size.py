"""Factor what the steps before have left, down to a size: measure what an error costs there, plan, then factor."""

from collections.abc import Iterator, Sequence

from workers.compression.math.sensitivity import measure_all, site_errors
from workers.compression.parts import CompressedPart
from workers.compression.spec.methods import METHODS, planner_of
from workers.compression.spec.steps import Factor, FactorToSize
from workers.compression.steps.factor import factor
from workers.compression.steps.work import Work


def run(step: FactorToSize, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield the embedding, the blocks and the head as the method factors them, behind the finished parts."""
    model = work.model
    measured = measure_all(model, work.ids, seed=work.seed)
    options = METHODS[step.method].options()
    ratio = model.inventory.total_parameters / step.parameters
    plan = planner_of(options).plan(model.inventory, ratio, options, site_errors(measured))
    planned = plan.step(Factor)
    if planned is None:
        raise ValueError(f"the method {step.method} factors nothing")
    yield from factor(model, planned, work.ids, sensitivities=measured, finished=finished)
