"""The list of jobs, with what keeps them from being computed."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import model_validator

from app.api.addresses import address
from app.api.listing import JobQuery
from app.page.access import HOME, Reading
from app.page.rendering import render
from modelpress.contract.job import State
from modelpress.contract.worker import WorkerState
from modelpress.spec.methods import METHODS

router = APIRouter(prefix=HOME, include_in_schema=False)

FILTERS = ("state", "method", "model", "metadata", "created_after", "created_before")


class ListQuery(JobQuery):
    """The filters of the list of jobs. Empty fields, which a form sends, too, count as not sent."""

    @model_validator(mode="before")
    @classmethod
    def drop_empty(cls, asked: dict[str, Any]) -> dict[str, Any]:
        """Return what was asked for without what is empty."""
        filled = {
            name: [item for item in value if item] if isinstance(value, list) else value
            for name, value in asked.items()
        }
        return {name: value for name, value in filled.items() if value not in ("", [])}


@router.get("")
def show_jobs(request: Request, service: Reading, query: Annotated[ListQuery, Query()]) -> Response:
    """Show the jobs of the team, newest first."""
    page = service.page(query.after, query.limit, query.filter)
    workers = service.workers().workers
    return render(
        request,
        "jobs.html",
        page=page,
        query=query,
        here=address_of(request, query),
        next=address_of(request, query.model_copy(update={"after": page.next})) if page.next else None,
        is_filtered=any(getattr(query, name) for name in FILTERS),
        states=list(State),
        methods=list(METHODS),
        unserved=service.unserved(),
        workers=workers,
        present=[worker for worker in workers if worker.state is not WorkerState.LOST],
        is_live=any(not job.state.has_ended for job in page.jobs),
    )


def address_of(request: Request, query: JobQuery) -> str:
    """Return the address of the list that answers a query."""
    asked = query.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return address(request, HOME) + (f"?{urlencode(asked, doseq=True)}" if asked else "")
