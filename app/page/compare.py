"""Several jobs side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.api.deps import known_job_id
from app.page import figures
from app.page.access import HOME, Reading
from app.page.rendering import render
from modelpress.contract.job import Job

MOST_JOBS = 8

router = APIRouter(prefix=HOME, include_in_schema=False)


@dataclass(frozen=True)
class Difference:
    """A field in which recipes differ, with its value in each."""

    field: str
    values: tuple[str, ...]


@router.get("/compare")
def compare_jobs(
    request: Request, service: Reading, job: Annotated[tuple[str, ...], Query(max_length=MOST_JOBS)] = ()
) -> Response:
    """Show the results of jobs beside each other, and what their recipes differ in."""
    jobs = [service.get(known_job_id(job_id)) for job_id in dict.fromkeys(job)]
    columns = figures.columns_of(jobs)
    return render(
        request,
        "compare.html",
        jobs=jobs,
        columns=columns,
        lines=figures.lines([model for _, model in columns], mark_best=True),
        incomparable=figures.incomparable(jobs),
        differences=differences(jobs),
    )


def differences(jobs: Sequence[Job]) -> list[Difference]:
    """Return the fields in which the recipes of jobs differ."""
    flat = [dict(flattened(job.recipe.model_dump(mode="json"))) for job in jobs]
    fields = dict.fromkeys(field for recipe in flat for field in recipe)
    rows = (Difference(field, tuple(recipe.get(field, "") for recipe in flat)) for field in fields)
    return [row for row in rows if len(set(row.values)) > 1]


def flattened(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted name and text of every value of a recipe that says something."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flattened(item, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list):
        yield field, ", ".join(map(str, value))
    elif value is not None:
        yield field, str(value)
