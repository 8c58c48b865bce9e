"""Factor a model down to a size: measure what an error in each matrix costs, plan structures, then factor."""

from collections.abc import Iterator, Sequence

from modelpress.spec.methods import METHODS, planner_of
from modelpress.spec.steps import Factor, FactorToSize
from workers.compression.math.sensitivity import measure_all, site_errors
from workers.compression.parts import CompressedPart
from workers.compression.steps.factor import factor
from workers.compression.steps.work import Work


def run(step: FactorToSize, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield the embedding, the blocks and the output head as the step's method factors them, after the finished parts.

    Sensitivities are measured on the model as the earlier steps have left it. Raises ValueError if the method's plan
    has no `Factor` step.
    """
    model = work.model
    measured = measure_all(model, work.ids, seed=work.seed)
    options = METHODS[step.method].options()
    ratio = model.inventory.total_parameters / step.parameters
    plan = planner_of(options).plan(model.inventory, ratio, options, site_errors(measured))
    planned = plan.step(Factor)
    if planned is None:
        raise ValueError(f"the method {step.method!r} does not factor matrices; use a method that does, as 'low_rank'")
    yield from factor(model, planned, work.ids, sensitivities=measured, finished=finished)
