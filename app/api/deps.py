"""What the endpoints are given."""

import re
from typing import Annotated

from fastapi import Depends, Path, Request

from app.api.lookups import HubLookups
from app.api.probes import Probes
from app.errors import JobNotFound
from app.jobs.service import JobService
from app.storage import Storage

JOB_ID = re.compile(r"job_[A-Za-z0-9]{1,64}")


async def get_probes(request: Request) -> Probes:
    probes: Probes = request.app.state.probes
    return probes


async def get_lookups(request: Request) -> HubLookups:
    lookups: HubLookups = request.app.state.lookups
    return lookups


async def get_service(request: Request) -> JobService:
    service: JobService = request.app.state.service
    return service


async def get_storage(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage


async def get_job_id(job_id: Annotated[str, Path(examples=["job_5f0c8a2e9b1d4c7f60a3e812"])]) -> str:
    """What cannot be an id is not looked up: the database refuses some strings, such as those with a NUL."""
    if JOB_ID.fullmatch(job_id):
        return job_id
    raise JobNotFound("no job has this id")


Probed = Annotated[Probes, Depends(get_probes)]
Lookups = Annotated[HubLookups, Depends(get_lookups)]
Service = Annotated[JobService, Depends(get_service)]
Artifacts = Annotated[Storage, Depends(get_storage)]
JobId = Annotated[str, Depends(get_job_id)]
