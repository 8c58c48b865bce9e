"""Jobs: post, look, list, cancel."""

from functools import partial
from typing import Annotated

from anyio import move_on_after, to_thread
from fastapi import APIRouter, Header, Query, Request, Response, status

from app.api.addresses import address, placed
from app.api.answers import JobAnswers
from app.api.conditional import unchanged
from app.api.deps import Artifacts, JobId, Lookups, Reading, Submitting
from app.api.documentation import IF_NONE_MATCH, NOT_MODIFIED, POSTED, job_at, refusals
from app.api.listing import JobQuery
from app.api.pace import LONGEST_WAIT_SECONDS, pause_seconds, wait_seconds
from app.api.validation import refuse_unstorable
from app.api.watch import Watch
from app.jobs.checks import asks_hub
from app.jobs.glances import Glances
from app.jobs.states import ENDED
from modelpress.contract.estimate import Estimate
from modelpress.contract.job import Job, JobPage
from modelpress.contract.recipe import Recipe

router = APIRouter(tags=["jobs"])

Prefer = Annotated[
    str | None,
    Header(
        max_length=200,
        description=f"`wait=N`: answer when the job has ended, or after N seconds, at most {LONGEST_WAIT_SECONDS}",
        examples=["wait=25"],
    ),
]

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
    response_model=Job,
    operation_id="submit_job",
    responses=job_at(202, *POSTED) | refusals(400, 401, 403, 413, 415, 422, 429, 503),
)
async def submit_job(
    recipe: Recipe,
    service: Submitting,
    lookups: Lookups,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Post a model and a target ratio. Once this has answered 202, the job survives any crash."""
    refuse_unstorable(recipe)
    submit = partial(service.submit, recipe, idempotency_key)
    threads = request.app.state.posting_threads
    job = await (lookups.run(submit) if asks_hub(recipe) else to_thread.run_sync(submit, limiter=threads))
    headers = {"Location": address(request, f"/jobs/{job.id}"), "Retry-After": str(pause_seconds(job))}
    body = placed(request, job).model_dump_json()
    return Response(body, status.HTTP_202_ACCEPTED, headers=headers, media_type="application/json")


@router.post("/jobs/estimate", operation_id="estimate_job", responses=refusals(400, 401, 403, 413, 415, 422, 503))
async def estimate_job(recipe: Recipe, service: Reading, lookups: Lookups) -> Estimate:
    """Say what a job would take and make: whether it would be accepted, sizes, memory, disk and time. Posts nothing."""
    refuse_unstorable(recipe)
    estimate = partial(service.estimate, recipe)
    return await (lookups.run(estimate) if asks_hub(recipe) else to_thread.run_sync(estimate))


@router.get("/jobs", operation_id="list_jobs", responses=refusals(401, 403, 422))
def list_jobs(service: Reading, request: Request, query: Annotated[JobQuery, Query()]) -> JobPage:
    """List the jobs of the team, newest first."""
    page = service.page(query.after, query.limit, query.filter)
    return JobPage(jobs=tuple(placed(request, job) for job in page.jobs), next=page.next)


@router.get(
    "/jobs/{job_id}",
    response_model=Job,
    operation_id="get_job",
    responses=job_at(200, "ETag", "Retry-After") | NOT_MODIFIED | refusals(401, 403, 404),
    openapi_extra={"parameters": [IF_NONE_MATCH]},
)
async def get_job(job_id: JobId, request: Request, service: Reading, prefer: Prefer = None) -> Response:
    """State, stage, progress, and in the end the measurements. Poll it at the pace that `Retry-After` asks for."""
    wait = wait_seconds(prefer)
    if wait:
        await until_ended(request, job_id, service.caller.team, wait)
    glances: Glances = request.app.state.glances
    answers: JobAnswers = request.app.state.answers
    seen = await glances.at(job_id, service.caller.team)
    answer = answers.known(request, job_id, seen)
    if answer is None:
        answer = await to_thread.run_sync(answers.fresh, request, service, job_id, seen)
    headers = answer.headers | ({"Preference-Applied": f"wait={wait}"} if wait else {})
    if unchanged(request, headers["ETag"]):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    return Response(answer.body, headers=headers, media_type="application/json")


async def until_ended(request: Request, job_id: str, team: str, seconds: int) -> None:
    """Return when the job has ended, or the time is over. Raises JobNotFound where the team has no such job."""
    watch: Watch = request.app.state.watch
    glances: Glances = request.app.state.glances
    with watch.on(job_id) as news, move_on_after(seconds):
        while (await glances.at(job_id, team)).state not in ENDED:
            news.clear()
            await news.wait()


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="cancel_job",
    responses=job_at(200, "Retry-After") | refusals(401, 403, 404, 409),
)
def cancel_job(job_id: JobId, service: Submitting, request: Request, response: Response) -> Job:
    """A waiting job is cancelled at once; a running one is `cancelling` until its computation has stopped."""
    job = service.cancel(job_id)
    if not job.state.has_ended:
        response.headers["Retry-After"] = str(pause_seconds(job))
    return placed(request, job)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=status.HTTP_202_ACCEPTED,
    operation_id="retry_job",
    responses=job_at(202, *POSTED) | refusals(401, 403, 404, 409, 429),
)
def retry_job(job_id: JobId, service: Submitting, request: Request, response: Response) -> Job:
    """Post a failed or cancelled job again. The new one goes on with the finished stages, if they are kept."""
    job = service.retry(job_id)
    response.headers["Location"] = address(request, f"/jobs/{job.id}")
    response.headers["Retry-After"] = str(pause_seconds(job))
    return placed(request, job)


@router.delete(
    "/jobs/{job_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    operation_id="delete_job",
    responses=refusals(401, 403, 404, 409),
)
def delete_job(job_id: JobId, service: Submitting, artifacts: Artifacts) -> None:
    """Delete a job that has ended, with its files. The record of changes keeps that it was there."""
    for attempt in range(1, service.delete(job_id) + 1):
        artifacts.discard(job_id, attempt)
