"""What the endpoints are given."""

import re
from typing import Annotated

from fastapi import Depends, Path, Request

from app.api.lookups import HubLookups
from app.api.probes import Probes
from app.api.validation import printable
from app.errors import JobNotFound, Refused
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
    """Return the id of the path; raise without a look-up where it cannot be one: the database refuses a NUL."""
    if JOB_ID.fullmatch(job_id):
        return job_id
    raise JobNotFound("no job has this id")


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise Refused for a query parameter that the endpoint does not have: a misspelt filter must not be ignored."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none here"
            raise Refused(printable(name), f"there is no such query parameter; {there}")


Probed = Annotated[Probes, Depends(get_probes)]
Lookups = Annotated[HubLookups, Depends(get_lookups)]
Service = Annotated[JobService, Depends(get_service)]
Artifacts = Annotated[Storage, Depends(get_storage)]
JobId = Annotated[str, Depends(get_job_id)]
