"""One job: its course, its result, its files, and what can be done with it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from app.api import jobs
from app.api.addresses import address
from app.api.artifacts import download_artifact, download_checkpoint, download_of, find, require
from app.api.deps import Artifacts, JobId
from app.api.download import respond
from app.jobs.service import StoredArtifact
from app.jobs.states import LEASED
from app.page import figures
from app.page.access import HOME, Reading, Submitting, refuse_foreign
from app.page.rendering import HEADERS, render
from app.page.timeline import stage_times
from modelpress.contract.codes import FailureCode
from modelpress.contract.event import EventKind
from modelpress.contract.job import Job

LOG_LINES = 200
COURSE = (EventKind.STATE, EventKind.STAGE)
MOST_STAGES = 1000
POINTS = 1000
PICTURES = {"image/png", "image/svg+xml"}

router = APIRouter(prefix=HOME, include_in_schema=False, dependencies=[Depends(refuse_foreign)])


@router.get("/jobs/{job_id}")
def show_job(job_id: JobId, request: Request, service: Reading) -> Response:
    """Show one job."""
    job = service.get(job_id)
    files, models = service.artifacts(job_id), figures.models_of(job)
    return render(
        request,
        "job.html",
        job=job,
        stages=stage_times(service.latest_events(job_id, COURSE, MOST_STAGES), is_running=job.state in LEASED),
        log=service.latest_events(job_id, (*COURSE, EventKind.LOG), LOG_LINES),
        has_curve=bool(service.events(job_id, 0, 1, EventKind.METRIC).events),
        models=models,
        lines=figures.lines(models),
        curves=figures.curves_of(job),
        files=files,
        pictures=[each.file.name for each in files if is_picture(each)],
        failure=None if job.error is None else explanation(job.error.code),
        seconds=seconds_taken(job),
    )


@router.get("/jobs/{job_id}/artifacts/{name:path}")
def download_file(job_id: JobId, name: str, request: Request, service: Reading, artifacts: Artifacts) -> Response:
    """Send one file of the result, as the API does."""
    return download_artifact(job_id, name, request, service, artifacts)


@router.get("/jobs/{job_id}/checkpoint")
def download_all(job_id: JobId, request: Request, service: Reading, artifacts: Artifacts) -> Response:
    """Send all files as one archive, as the API does."""
    return download_checkpoint(job_id, request, service, artifacts)


@router.get("/jobs/{job_id}/pictures/{name:path}")
def show_picture(job_id: JobId, name: str, request: Request, service: Reading, artifacts: Artifacts) -> Response:
    """Send a picture of the result through this service, since a page may show none from elsewhere."""
    stored = find(service, job_id, name)
    require(artifacts, job_id, stored)
    response = respond(request, download_of(artifacts, job_id, stored))
    response.headers["Content-Security-Policy"] = HEADERS["Content-Security-Policy"]
    return response


class Curve(BaseModel):
    """The next points of a job's loss curve."""

    points: tuple[tuple[int, float | None], ...]
    next: int | None


@router.get("/jobs/{job_id}/curve")
def read_curve(job_id: JobId, service: Reading, after: Annotated[int, Query(ge=0, lt=2**63)] = 0) -> Curve:
    """Return the points of the loss curve behind the event `after`: step and loss."""
    page = service.events(job_id, after, POINTS, EventKind.METRIC)
    points = ((event.data["step"], event.data["value"]) for event in page.events if event.data.get("name") == "loss")
    return Curve(points=tuple(points), next=page.next)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: JobId, request: Request, service: Submitting) -> Response:
    """Cancel a job, and show it."""
    service.cancel(job_id)
    return to_job(request, job_id)


@router.post("/jobs/{job_id}/retry")
def retry_job(job_id: JobId, request: Request, service: Submitting) -> Response:
    """Post a failed or cancelled job again, and show the new one."""
    return to_job(request, service.retry(job_id).id)


@router.post("/jobs/{job_id}/delete")
def delete_job(job_id: JobId, request: Request, service: Submitting, artifacts: Artifacts) -> Response:
    """Delete a job with its files, and show those that are left."""
    jobs.delete_job(job_id, service, artifacts)
    return RedirectResponse(address(request, HOME), 303)


def to_job(request: Request, job_id: str) -> Response:
    """Lead to the page of a job."""
    return RedirectResponse(address(request, f"{HOME}/jobs/{job_id}"), 303)


def is_picture(stored: StoredArtifact) -> bool:
    """Return whether a file of a result is one of the report's pictures."""
    name = stored.file.name
    return stored.file.media_type in PICTURES and (name.startswith("plots/") or "/plots/" in name or "/" not in name)


def explanation(code: str) -> object:
    """Return what is known of a failure; None for a code of another version."""
    return next((known.kind for known in FailureCode if known == code), None)


def seconds_taken(job: Job) -> float | None:
    """Return for how long workers have computed a job that has ended; None without any."""
    spans = [(attempt.started_at, attempt.ended_at) for attempt in job.attempts if attempt.ended_at is not None]
    seconds = sum((end - start).total_seconds() for start, end in spans)
    return seconds if job.state.has_ended and spans else None
