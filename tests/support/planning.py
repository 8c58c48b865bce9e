"""Plans of the registered methods, and the parts that their steps leave, for tests of what is below the pipeline."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from modelpress.spec.budgets import uniform_structures
from modelpress.spec.families import Family, stored_parameters
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods import METHODS, planner_of
from modelpress.spec.methods.low_rank import LOW_RANK
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import Range
from modelpress.spec.steps import BaseStep, Factor
from modelpress.spec.structures import Structure
from workers.compression.math.sensitivity import Sensitivity, site_errors
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps import RUNNERS
from workers.compression.steps.factor import factor
from workers.compression.steps.work import CheckpointStore, Work


def range_of(inventory: Inventory, method: str, **options: Any) -> Range:
    """Return the ratios that a method reaches with these options."""
    return METHODS[method].range(inventory, METHODS[method].options(**options))


def plan_of(
    inventory: Inventory, method: str, ratio: float, measured: Mapping[str, Sensitivity] | None = None, **options: Any
) -> Plan:
    """Return the plan of a method with these options."""
    chosen = METHODS[method].options(**options)
    return planner_of(chosen).plan(inventory, ratio, chosen, site_errors(measured or {}))


def uniform_plan(inventory: Inventory, ratio: float, family: Family = LOW_RANK.family) -> Plan:
    """Return the plan that leaves every site the same fraction of its parameters, whatever an error costs there."""
    return factor_plan(inventory, uniform_structures(inventory, family, round(inventory.total_parameters / ratio)))


def factor_plan(inventory: Inventory, structures: Mapping[str, Structure], **settings: Any) -> Plan:
    """Return the plan that gives the sites these structures, and does nothing else."""
    return Plan(
        method="low_rank",
        steps=(Factor(structures=structures, **settings),),
        parameters_before=inventory.total_parameters,
        parameters_after=stored_parameters(inventory, structures),
    )


def structures_of(plan: Plan) -> Mapping[str, Structure]:
    """Return what a plan makes of each site that it factors."""
    step = plan.step(Factor)
    return {} if step is None else step.structures


def factored(
    model: StreamedModel,
    plan: Plan,
    ids: Tensor,
    sensitivities: Mapping[str, Sensitivity] | None = None,
    finished: Sequence[CompressedPart] = (),
) -> Iterator[CompressedPart]:
    """Yield the parts that the only step of the plan leaves behind the finished ones."""
    step = plan.step(Factor)
    assert step is not None
    return factor(model, step, ids, sensitivities=sensitivities or {}, finished=finished)


def taken(
    step: BaseStep,
    original: StreamedModel,
    model: EditedModel,
    ids: Tensor,
    finished: Sequence[CompressedPart] = (),
    checkpoints: CheckpointStore | None = None,
) -> Iterator[CompressedPart]:
    """Take a step, and apply its parts to `model` as the pipeline does; yield those behind the finished ones."""
    runner = RUNNERS[type(step)]
    work = Work(original, model, ids, {}, checkpoints)
    return (
        applied(model, runner.run(step, work, finished)) if runner.applies_at_once else runner.run(step, work, finished)
    )


def applied(model: EditedModel, parts: Iterable[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield the parts, each of which is in the model before the next one is asked for."""
    for part in parts:
        model.apply(part)
        yield part
