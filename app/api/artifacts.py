"""The files of a job's result: list them, download one, or download all in one archive."""

from functools import partial
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from app.api.addresses import address
from app.api.archive import Archive
from app.api.deps import Artifacts, JobId, Reading
from app.api.documentation import CONDITIONS, Responses, downloads, headers, refusals
from app.api.download import Download, respond
from app.api.pace import pause_seconds
from app.errors import ArtifactNotFound, NotFinished
from app.jobs.service import JobService, StoredArtifact
from app.settings import Settings
from app.storage import Storage
from modelpress.contract.job import Artifact, ArtifactList, Job

AT_THE_STORE: Final[Responses] = {
    307: {"description": "The object store has the file, at `Location`", "headers": headers("Location")}
}

router = APIRouter(tags=["artifacts"])


@router.get("/jobs/{job_id}/artifacts", operation_id="list_artifacts", responses=refusals(401, 403, 404))
def list_artifacts(job_id: JobId, service: Reading, request: Request) -> ArtifactList:
    """List the files of the result; none while there is no result."""
    return ArtifactList(artifacts=tuple(as_artifact(request, job_id, stored) for stored in service.artifacts(job_id)))


@router.head("/jobs/{job_id}/artifacts/{name:path}", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/artifacts/{name:path}",
    operation_id="download_artifact",
    response_class=Response,
    responses=downloads("*/*") | AT_THE_STORE | refusals(401, 403, 404, 409, 416, 503),
    openapi_extra={"parameters": CONDITIONS},
)
def download_artifact(job_id: JobId, name: str, request: Request, service: Reading, artifacts: Artifacts) -> Response:
    """Download one file, bit for bit as packaged. Resume with `Range` and `If-Range`; verify with `Repr-Digest`."""
    stored = find(service, job_id, name)
    require(artifacts, job_id, stored)
    settings: Settings = request.app.state.settings
    if settings.link_seconds and (link := artifacts.link(job_id, stored.attempt, name, settings.link_seconds)):
        return RedirectResponse(link, headers={"Cache-Control": "no-store"})
    return respond(request, download_of(artifacts, job_id, stored))


@router.head("/jobs/{job_id}/checkpoint", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/checkpoint",
    operation_id="download_checkpoint",
    response_class=Response,
    responses=downloads("application/x-tar") | refusals(401, 403, 404, 409, 416),
    openapi_extra={"parameters": CONDITIONS},
)
def download_checkpoint(job_id: JobId, request: Request, service: Reading, artifacts: Artifacts) -> Response:
    """Download all files as one uncompressed tar that unpacks to a folder named after the job. Resume with `Range`."""
    stored = service.artifacts(job_id)
    job = service.get(job_id)
    finished = job.timestamps.succeeded or job.timestamps.failed
    if not job.state.has_ended:
        raise not_finished(job)
    if not stored or finished is None:
        raise ArtifactNotFound(f"the job is {job.state} and has no checkpoint")
    attempt = stored[0].attempt
    for entry in stored:
        require(artifacts, job_id, entry)
    files = [entry.file for entry in stored]
    archive = Archive(job_id, files, finished, partial(artifacts.open, job_id, attempt))
    download = Download(f"{job_id}.tar", archive.size, archive.etag, "application/x-tar", archive.read)
    return respond(request, download)


def download_of(artifacts: Storage, job_id: str, stored: StoredArtifact) -> Download:
    """Return a file of the result, ready to be sent."""
    file = stored.file
    return Download(
        filename=PurePosixPath(file.name).name,
        size=file.bytes,
        etag=f'"sha256-{file.sha256}"',
        media_type=file.media_type,
        read=partial(artifacts.open, job_id, stored.attempt, file.name),
        sha256=file.sha256,
    )


def find(service: JobService, job_id: str, name: str) -> StoredArtifact:
    """Return the artifact with this name.

    Raises:
        ArtifactNotFound: the job has none.
    """
    for stored in service.artifacts(job_id):
        if stored.file.name == name:
            return stored
    job = service.get(job_id)
    if not job.state.has_ended:
        raise not_finished(job)
    raise ArtifactNotFound(f"the job has no artifact of this name; /jobs/{job_id}/artifacts lists those it has")


def not_finished(job: Job) -> NotFinished:
    """Return the refusal of a download that comes too early. A client that appends must not take it for the file."""
    return NotFinished(f"the job is {job.state}; its files are there once it has succeeded", pause_seconds(job))


def require(storage: Storage, job_id: str, stored: StoredArtifact) -> None:
    """Check that a file of the result is still stored.

    Raises:
        ArtifactNotFound: it is not.
    """
    if not storage.exists(job_id, stored.attempt, stored.file.name):
        raise ArtifactNotFound(f"the file {stored.file.name!r} of this job is no longer stored")


def as_artifact(request: Request, job_id: str, stored: StoredArtifact) -> Artifact:
    """Return the stored artifact as the API shows it."""
    file = stored.file
    return Artifact(
        name=file.name,
        bytes=file.bytes,
        sha256=file.sha256,
        media_type=file.media_type,
        href=address(request, f"/jobs/{job_id}/artifacts/{quote(file.name)}"),
    )
