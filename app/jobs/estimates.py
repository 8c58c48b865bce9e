"""What a job would take and make. Times follow from the attempts that this installation has finished."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.checks import Checked, feasible_range
from app.jobs.models import AttemptRow, JobRow
from modelpress.contract.catalogue import RatioRange
from modelpress.contract.estimate import Estimate, SizeEstimate, TimeEstimate
from modelpress.contract.job import AttemptOutcome
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused
from modelpress.spec.inventory import Inventory

STORED_BYTES = 2
COMPUTED_BYTES = 4
TRAINED_COPIES = 6
"""Weights, gradients and AdamW's state of a trained parameter, in float32; and what the update needs at once."""
BLOCK_COPIES = 4
"""A block of the original, its replacement, and what fitting it needs."""
LATEST_ATTEMPTS = 200
PASSES_TRAINED = 4
"""Forward and backward pass of the student, with the teacher's forward pass, in passes over a token."""


@dataclass(frozen=True)
class Finished:
    """The work and the time of a finished attempt."""

    work: float
    seconds: float


def estimate(session: Session, checked: Checked, faults: Sequence[Refused]) -> Estimate:
    """Return the estimate for a recipe, of which `faults` would be refused."""
    recipe, inventory = checked.recipe, checked.model.inventory
    before = inventory.total_parameters
    sizes = tuple(
        SizeEstimate(target_ratio=ratio, bytes=round(STORED_BYTES * before / ratio)) for ratio in recipe.ratios
    )
    return Estimate(
        accepted=not faults,
        errors=tuple({"field": fault.field, "message": fault.message} for fault in faults),
        range=range_of(recipe, inventory),
        parameters_before=before,
        bytes_before=STORED_BYTES * before,
        sizes=sizes,
        memory_bytes=memory_bytes(recipe, inventory),
        disk_bytes=2 * sum(size.bytes for size in sizes) * len(recipe.formats),
        times=tuple(times(session, recipe, before)),
    )


def range_of(recipe: Recipe, inventory: Inventory) -> RatioRange | None:
    """Return the ratios that the recipe's method reaches on the model; None where it does not fit."""
    try:
        found = feasible_range(recipe, inventory)
    except Refused:
        return None
    return RatioRange(lowest=found.lowest, highest=found.highest)


def memory_bytes(recipe: Recipe, inventory: Inventory) -> int:
    """Return the bytes of the weights that are held at once: some of one block, or, in training, of whole models."""
    outside = inventory.total_parameters - sum(inventory.block_parameters)
    block = max(inventory.block_parameters, default=0)
    needs = [COMPUTED_BYTES * (outside + BLOCK_COPIES * block)]
    if recipe.distillation is not None or recipe.teacher_text is not None:
        needs.append(COMPUTED_BYTES * inventory.total_parameters)
    if recipe.distillation is not None:
        student = inventory.total_parameters / min(recipe.ratios)
        needs.append(round(COMPUTED_BYTES * (inventory.total_parameters + (1 + TRAINED_COPIES) * student)))
    return max(needs)


def work_of(recipe: Recipe, parameters: int) -> float:
    """Return how much there is to compute: parameters times the tokens that pass through them."""
    tokens: float = recipe.calibration.sequences * recipe.calibration.length
    tokens += len(recipe.ratios) * 2 * recipe.evaluation.max_tokens * len(recipe.evaluation.datasets)
    if recipe.distillation is not None:
        tokens += len(recipe.ratios) * PASSES_TRAINED * recipe.distillation.tokens
    return parameters * tokens


def times(session: Session, recipe: Recipe, parameters: int) -> list[TimeEstimate]:
    """Return the estimated time for each class of devices that has finished jobs with the recipe's method."""
    query = (
        select(AttemptRow.device, AttemptRow.started_at, AttemptRow.ended_at, JobRow.recipe, JobRow.source)
        .join(JobRow, JobRow.id == AttemptRow.job_id)
        .where(
            JobRow.method == recipe.method.name,
            AttemptRow.outcome == AttemptOutcome.SUCCEEDED,
            AttemptRow.device.is_not(None),
            AttemptRow.resumed.is_(None),
        )
        .order_by(AttemptRow.started_at.desc())
        .limit(LATEST_ATTEMPTS)
    )
    finished: defaultdict[str, list[Finished]] = defaultdict(list)
    for row in session.execute(query):
        work = work_of(Recipe.model_validate(row.recipe), row.source["parameters"])
        finished[row.device].append(Finished(work, (row.ended_at - row.started_at).total_seconds()))
    work = work_of(recipe, parameters)
    return [
        TimeEstimate(device=device, seconds=round(seconds_for(work, attempts), 1), attempts=len(attempts))
        for device, attempts in sorted(finished.items())
    ]


def seconds_for(work: float, finished: Sequence[Finished]) -> float:
    """Return the seconds for some work, on the line through the finished attempts: a start, and a time for each unit.

    Where they do not determine both, the time is in proportion to the work, and no attempt is thought to start sooner
    than any has.
    """
    mean_work = sum(each.work for each in finished) / len(finished)
    mean_seconds = sum(each.seconds for each in finished) / len(finished)
    spread = sum((each.work - mean_work) ** 2 for each in finished)
    slope = 0.0
    if spread > 0:
        slope = sum((each.work - mean_work) * (each.seconds - mean_seconds) for each in finished) / spread
    start = mean_seconds - slope * mean_work
    if slope <= 0 or start < 0:
        return max(mean_seconds * work / mean_work, min(each.seconds for each in finished) if work < mean_work else 0.0)
    return start + slope * work
