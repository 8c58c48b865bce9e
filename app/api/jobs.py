"""Jobs: post, look, list, cancel."""

import hashlib
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response, status

from app.api.addresses import address, placed
from app.api.conditional import unchanged
from app.api.deps import JobId, Lookups, Service
from app.api.documentation import IF_NONE_MATCH, NOT_MODIFIED, POSTED, job_at, refusals
from app.api.pace import pause_seconds
from app.api.validation import refuse_unstorable
from app.contract.job import Job, JobPage, State
from app.contract.recipe import Recipe
from app.jobs.checks import asks_hub

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="a text of your choice, such as a UUID; a request that repeats it within 24 hours, with the same "
        "recipe, is answered with the same job and makes no second one",
    ),
]


@router.post(
    "/jobs",
    status_code=status.HTTP_202_ACCEPTED,
    operation_id="submit_job",
    responses=job_at(202, *POSTED) | refusals(400, 413, 415, 422, 503),
)
async def submit_job(
    recipe: Recipe,
    service: Service,
    lookups: Lookups,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Post a model and a target ratio. Once this has answered 202, the job survives any crash."""
    refuse_unstorable(recipe)
    submit = partial(service.submit, recipe, idempotency_key)
    job = await (lookups.run(submit) if asks_hub(recipe) else to_thread.run_sync(submit))
    response.headers["Location"] = address(request, f"/jobs/{job.id}")
    response.headers["Retry-After"] = str(pause_seconds(job))
    return placed(request, job)


@router.get("/jobs", operation_id="list_jobs", responses=refusals(422))
def list_jobs(
    service: Service,
    request: Request,
    after: Annotated[str | None, Query(max_length=256, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    state: Annotated[State | None, Query(description="only jobs in this state")] = None,
) -> JobPage:
    """Newest first."""
    page = service.page(after, limit, state)
    return JobPage(jobs=tuple(placed(request, job) for job in page.jobs), next=page.next)


@router.get(
    "/jobs/{job_id}",
    response_model=Job,
    operation_id="get_job",
    responses=job_at(200, "ETag", "Retry-After") | NOT_MODIFIED | refusals(404),
    openapi_extra={"parameters": [IF_NONE_MATCH]},
)
def get_job(job_id: JobId, request: Request, service: Service) -> Response:
    """State, stage, progress, and in the end the measurements. Poll it at the pace that `Retry-After` asks for."""
    job = placed(request, service.get(job_id))
    body = job.model_dump_json().encode()
    headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Cache-Control": "private, no-cache"}
    if not job.state.has_ended:
        headers["Retry-After"] = str(pause_seconds(job))
    if unchanged(request, headers["ETag"]):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.post(
    "/jobs/{job_id}/cancel", operation_id="cancel_job", responses=job_at(200, "Retry-After") | refusals(404, 409)
)
def cancel_job(job_id: JobId, service: Service, request: Request, response: Response) -> Job:
    """A waiting job is cancelled at once; a running one is `cancelling` until its computation has stopped."""
    job = service.cancel(job_id)
    if not job.state.has_ended:
        response.headers["Retry-After"] = str(pause_seconds(job))
    return placed(request, job)
