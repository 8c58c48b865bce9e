"""How long each stage took in finished jobs that were like one that begins."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.estimates import work_of
from app.jobs.models import AttemptRow, EventRow, JobRow
from modelpress.contract.event import EventKind
from modelpress.contract.job import AttemptOutcome
from modelpress.contract.recipe import Recipe

LOOKED_AT = 20
COMPARED = 5
ALIKE = 1.25
"""Largest factor between the work of two jobs that are alike."""


def of_stages(session: Session, job_id: str, recipe: Recipe, device: str) -> dict[str, float]:
    """Return the seconds of each stage of a job, the median of the newest ones that are alike; empty without any.

    Alike are jobs of the same team that compute as much with the same model, method and formats on the same device, in
    one attempt.
    """
    owner = select(JobRow.owner).where(JobRow.id == job_id).scalar_subquery()
    query = (
        select(JobRow.id, JobRow.recipe, AttemptRow.ended_at)
        .join(AttemptRow, AttemptRow.job_id == JobRow.id)
        .where(
            JobRow.owner == owner,
            JobRow.model == recipe.model,
            JobRow.method == recipe.method.name,
            AttemptRow.outcome == AttemptOutcome.SUCCEEDED,
            AttemptRow.device == device,
            AttemptRow.resumed.is_(None),
        )
        .order_by(JobRow.created_at.desc(), JobRow.id.desc())
        .limit(LOOKED_AT)
    )
    found = [row for row in session.execute(query) if are_alike(Recipe.model_validate(row.recipe), recipe)]
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for row in found[:COMPARED]:
        for stage, taken in taken_by(entered(session, row.id), row.ended_at).items():
            seconds[stage].append(taken)
    return {stage: median(taken) for stage, taken in seconds.items()}


def are_alike(one: Recipe, other: Recipe) -> bool:
    """Return whether two jobs with the same model and method go through the same stages with about as much work."""
    work = sorted(work_of(recipe, parameters=1) for recipe in (one, other))
    shapes = [
        (set(each.formats), len(each.ratios), each.distillation is None, each.evaluation.tasks, each.precision)
        for each in (one, other)
    ]
    return shapes[0] == shapes[1] and work[1] <= ALIKE * work[0]


def entered(session: Session, job_id: str) -> Sequence[tuple[str, datetime]]:
    """Return the stages that a job has entered, and when."""
    query = (
        select(EventRow.data["stage"].astext, EventRow.at)
        .where(EventRow.job_id == job_id, EventRow.kind == EventKind.STAGE)
        .order_by(EventRow.id)
    )
    return [(stage, at) for stage, at in session.execute(query)]


def taken_by(stages: Iterable[tuple[str, datetime]], ended_at: datetime) -> dict[str, float]:
    """Return the seconds from the beginning of each stage to that of the next one, the last until `ended_at`."""
    begun = [*stages, ("", ended_at)]
    seconds: defaultdict[str, float] = defaultdict(float)
    for (stage, at), (_, until) in pairwise(begun):
        seconds[stage] += (until - at).total_seconds()
    return dict(seconds)
