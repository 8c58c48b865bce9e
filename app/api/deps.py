"""What the endpoints are given."""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Depends, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, BaseModel

from app.api.lookups import HubLookups
from app.api.origins import refuse_foreign_pages
from app.api.probes import Probes
from app.api.rates import RateLimits
from app.api.validation import printable
from app.api.watch import Watch
from app.errors import JobNotFound, MissingScope
from app.jobs.service import JobService
from app.jobs.upload_service import UploadService
from app.keys.callers import Caller
from app.keys.service import KeyService
from app.logs import REQUEST
from app.storage import Storage
from modelpress.contract.access import Scope
from modelpress.errors import Refused

BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key of a team, `mp_…`, or a token of the company's OpenID provider.",
)
JOB_ID = re.compile(r"job_[A-Za-z0-9]{1,64}")


async def get_probes(request: Request) -> Probes:
    probes: Probes = request.app.state.probes
    return probes


async def get_lookups(request: Request) -> HubLookups:
    lookups: HubLookups = request.app.state.lookups
    return lookups


async def get_keys(request: Request) -> KeyService:
    keys: KeyService = request.app.state.keys
    return keys


async def get_watch(request: Request) -> Watch:
    watch: Watch = request.app.state.watch
    return watch


Watching = Annotated[Watch, Depends(get_watch)]
Keys = Annotated[KeyService, Depends(get_keys)]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]


def caller_with(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return a dependency on a caller whose key has this scope."""

    async def get_caller(request: Request, credentials: Credentials) -> Caller:
        caller = await identify(request, None if credentials is None else credentials.credentials)
        require_scope(caller, scope)
        return caller

    return get_caller


async def identify(request: Request, text: str | None) -> Caller:
    """Return who sends this key or token with a request, and count the request of that team.

    Raises:
        Unauthenticated: that is nobody.
        ForeignPage: no keys are asked for, and the page of another site sends it.
        TooManyRequests: the team has made as many requests as it may.
    """
    keys: KeyService = request.app.state.keys
    ask = partial(keys.caller, text, REQUEST.get())
    if keys.is_open:
        refuse_foreign_pages(request)
        caller = ask()
    elif (known := keys.recent_caller(text, REQUEST.get())) is not None:
        caller = known
    else:
        limiter = request.app.state.provider_threads if keys.asks_provider(text) else None
        caller = await to_thread.run_sync(ask, limiter=limiter)
    count(request, caller.team)
    return caller


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raise MissingScope unless the caller's key has the scope."""
    if scope not in caller.scopes:
        raise MissingScope(f"this needs a key with the scope '{scope}'")


def count(request: Request, team: str) -> None:
    """Count a request of the team, and tell in the answer what is left. Raises TooManyRequests where nothing is."""
    rates: RateLimits = request.app.state.rates
    allowance = rates.take(team)
    if allowance is not None:
        request.state.exchange.headers |= allowance.headers
        allowance.check()


Reader = Annotated[Caller, Depends(caller_with(Scope.READ))]
Submitter = Annotated[Caller, Depends(caller_with(Scope.SUBMIT))]
Administrator = Annotated[Caller, Depends(caller_with(Scope.ADMIN))]


async def get_reading_service(request: Request, caller: Reader) -> JobService:
    service: JobService = request.app.state.service
    return service.of(caller)


async def get_submitting_service(request: Request, caller: Submitter) -> JobService:
    service: JobService = request.app.state.service
    return service.of(caller)


async def get_reading_uploads(request: Request, caller: Reader) -> UploadService:
    return uploads_of(request, caller)


async def get_submitting_uploads(request: Request, caller: Submitter) -> UploadService:
    return uploads_of(request, caller)


def uploads_of(request: Request, caller: Caller) -> UploadService:
    """Return what the caller can do with uploads."""
    service: JobService = request.app.state.service
    return UploadService(service.settings, service.sessions, request.app.state.storage, caller)


async def get_operating_service(
    request: Request, caller: Annotated[Caller, Depends(caller_with(Scope.OPERATE))]
) -> JobService:
    service: JobService = request.app.state.service
    return service.of(caller)


async def get_storage(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage


def known_job_id(job_id: str) -> str:
    """Return the id of a job; raise without a look-up where it cannot be one: the database refuses a NUL."""
    if JOB_ID.fullmatch(job_id):
        return job_id
    raise JobNotFound("no job has this id")


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise Refused for a query parameter that the endpoint does not have: a misspelt filter must not be ignored."""
    if not request.scope["query_string"]:
        return
    known = [name for parameter in request.scope["route"].dependant.query_params for name in names(parameter)]
    for name in request.query_params:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none here"
            raise Refused(printable(name), f"there is no such query parameter; {there}")


def names(parameter: Any) -> list[str]:
    """Return the names that a query parameter has in the address; a model stands for its fields."""
    kind = parameter.field_info.annotation
    is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
    return list(kind.model_fields) if is_model else [parameter.alias]


Probed = Annotated[Probes, Depends(get_probes)]
Lookups = Annotated[HubLookups, Depends(get_lookups)]
Reading = Annotated[JobService, Depends(get_reading_service)]
Operating = Annotated[JobService, Depends(get_operating_service)]
Submitting = Annotated[JobService, Depends(get_submitting_service)]
ReadingUploads = Annotated[UploadService, Depends(get_reading_uploads)]
SubmittingUploads = Annotated[UploadService, Depends(get_submitting_uploads)]
Artifacts = Annotated[Storage, Depends(get_storage)]
JobId = Annotated[str, Path(examples=["job_5f0c8a2e9b1d4c7f60a3e812"]), AfterValidator(known_job_id)]
Name = Annotated[str, Path(pattern=r"^[^\x00]{1,300}$")]
"""A name in an address, without the NUL that the database refuses."""
