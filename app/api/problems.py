"""The one place where errors become HTTP: problem documents as in RFC 9457, for the framework's errors, too."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import ProgrammingError
from starlette.exceptions import HTTPException as FrameworkError
from starlette.routing import Match
from starlette.types import Scope

from app.api.addresses import address, path_below
from app.api.documentation import PROBLEM_TYPE
from app.api.validation import MOST_ERRORS, field_errors
from app.db import OUTAGES, lacks_migrations
from app.disk import is_disk_failure
from app.errors import (
    ArtifactNotFound,
    CannotRetry,
    DatabaseUnavailable,
    DeliveryNotFound,
    ForeignDataDirectory,
    ForeignPage,
    HubUnavailable,
    IdentityProviderUnavailable,
    JobEnded,
    JobNotFound,
    KeyNotFound,
    MissingScope,
    NotEnded,
    NotFinished,
    NotMigrated,
    QueueFull,
    QuotaExceeded,
    StorageUnavailable,
    TooManyModelsRead,
    TooManyRequests,
    Unauthenticated,
    UploadBusy,
    UploadInUse,
    UploadNotFound,
    UploadTooLarge,
    WebhookNotFound,
    WorkerNotFound,
    WrongOffset,
)
from modelpress.contract.job import Problem
from modelpress.errors import ModelpressError, Refused

RETRY_AFTER_SECONDS = 5
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

STATUS: Final[Mapping[type[ModelpressError], int]] = {
    Refused: 422,
    Unauthenticated: 401,
    MissingScope: 403,
    ForeignPage: 403,
    QuotaExceeded: 429,
    TooManyRequests: 429,
    KeyNotFound: 404,
    JobNotFound: 404,
    ArtifactNotFound: 404,
    WorkerNotFound: 404,
    WebhookNotFound: 404,
    DeliveryNotFound: 404,
    UploadNotFound: 404,
    UploadBusy: 409,
    UploadInUse: 409,
    WrongOffset: 409,
    UploadTooLarge: 413,
    JobEnded: 409,
    CannotRetry: 409,
    NotEnded: 409,
    NotFinished: 409,
    QueueFull: 503,
    HubUnavailable: 503,
    IdentityProviderUnavailable: 503,
    DatabaseUnavailable: 503,
    StorageUnavailable: 503,
    TooManyModelsRead: 503,
    NotMigrated: 503,
    ForeignDataDirectory: 503,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of problem; `/problems/<code>` explains it."""

    code: str
    title: str
    status: int
    explanation: str = ""


BAD_REQUEST = Kind(
    "bad_request", "The request cannot be read", 400, "It is not valid HTTP, or not in the encoding that it names."
)
MALFORMED_JSON = Kind("malformed_json", "The body is not valid JSON", 400, "The detail says where reading stopped.")
NOT_FOUND = Kind("not_found", "There is nothing at this address", 404, "The addresses there are: see /docs.")
METHOD_NOT_ALLOWED = Kind(
    "method_not_allowed", "The address does not know this method", 405, "The header Allow names those that it knows."
)
TOO_SLOW = Kind(
    "body_too_slow", "The body came too slowly", 408, "Send the request again over a connection that is fast enough."
)
TOO_LARGE = Kind(
    "body_too_large", "The body is too large", 413, "The detail says how much is read. A recipe needs a few kilobytes."
)
NOT_JSON = Kind("not_json", "The body is not JSON", 415, "Send the header Content-Type: application/json.")
OUT_OF_RANGE = Kind(
    "range_not_satisfiable",
    "The range lies outside the file",
    416,
    "The header Content-Range tells the size of the file. A client that already has all of it gets this answer, too.",
)
INVALID = Kind(
    "invalid_request", "The request is not valid", 422, "Each entry of errors names a field and says what to send."
)
LATE = Kind(
    "out_of_time",
    "The request took too long",
    503,
    "Something that the request needs was too slow. A job that was posted may have been accepted all the same: look at "
    "GET /jobs before you post it again.",
)
INTERNAL = Kind(
    "internal_error",
    "The service has failed",
    500,
    "The fault lies with the service. Its log tells more, under the request id that the header X-Request-Id carries.",
)

FRAMEWORK: Final = (
    BAD_REQUEST,
    MALFORMED_JSON,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    TOO_SLOW,
    TOO_LARGE,
    NOT_JSON,
    OUT_OF_RANGE,
    INVALID,
    INTERNAL,
    LATE,
)
OF_STATUS: Final = {kind.status: kind for kind in reversed(FRAMEWORK)}


def install(app: FastAPI) -> None:
    """Let every error of `app` be answered from here."""
    app.add_exception_handler(ModelpressError, answer_domain_error)
    app.add_exception_handler(RequestValidationError, answer_invalid_request)
    app.add_exception_handler(FrameworkError, answer_framework_error)
    for error in OUTAGES:
        app.add_exception_handler(error, answer_database_error)
    app.add_exception_handler(ProgrammingError, answer_statement_error)
    app.add_exception_handler(OSError, answer_disk_error)


def answer(
    request: Request,
    kind: Kind,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    problem = Problem(
        type=address(request, f"/problems/{kind.code}"),
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=quote(address(request, path_below(request.scope))),
        errors=errors,
    )
    headers = dict(headers or {})
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if kind.status in (429, 503):
        headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    return Response(
        problem.model_dump_json(exclude_none=True), status_code=kind.status, headers=headers, media_type=PROBLEM_TYPE
    )


async def answer_domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelpressError)  # noqa: S101 - registered for these only
    faults = error.faults[:MOST_ERRORS] if isinstance(error, Refused) else ()
    errors = [{"field": fault.field, "message": fault.message} for fault in faults] or None
    headers = {}
    if isinstance(error, NotFinished | TooManyRequests):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, WrongOffset):
        headers["Upload-Offset"] = str(error.offset)
    return answer(request, kind_of(type(error)), error.message, errors, headers)


async def answer_database_error(request: Request, error: Exception) -> Response:
    log.error("database_unavailable", exc_info=error)
    return answer(request, kind_of(DatabaseUnavailable), "the database does not answer; try again in a moment")


async def answer_statement_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProgrammingError)  # noqa: S101 - registered for these only
    if not lacks_migrations(error):
        raise error
    log.error("database_not_migrated", exc_info=error)
    return answer(request, kind_of(NotMigrated), "the database lacks migrations; run 'modelpress migrate'")


async def answer_disk_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)  # noqa: S101 - registered for these only
    if not is_disk_failure(error):
        raise error
    log.error("disk_unavailable", exc_info=error)
    reason = os.strerror(error.errno or 0)
    return answer(request, kind_of(StorageUnavailable), f"the service's disk cannot be used: {reason}")


async def answer_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for these only
    if isinstance(error.body, bytes):
        return answer(request, NOT_JSON, "send the body as JSON, with the header Content-Type: application/json")
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return answer(request, MALFORMED_JSON, f"{first['ctx']['error']} at character {first['loc'][-1]}")
    errors = field_errors(error.errors())
    return answer(request, INVALID, "; ".join(f"{entry['field']}: {entry['message']}" for entry in errors), errors)


async def answer_framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FrameworkError)  # noqa: S101 - registered for these only
    headers = dict(error.headers or {})
    kind = OF_STATUS.get(error.status_code) or Kind("error", "The request has failed", error.status_code)
    if kind is METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(allowed_methods(request))
        return answer(request, kind, f"send one of {headers['Allow']}", headers=headers)
    return answer(request, kind, error.detail, headers=headers)


def answer_late(request: Request) -> Response:
    """Return the answer to a request that is not waited for any longer."""
    return answer(request, LATE, "the service could not answer in time; try again in a moment")


def answer_silent_database(request: Request) -> Response:
    """Return the answer to a request that waits while the database is known to hang."""
    return answer(
        request,
        kind_of(DatabaseUnavailable),
        "the database does not answer; a job that was posted may have been accepted all the same, so repeat it with "
        "the same Idempotency-Key, or look at GET /jobs before you post it again",
    )


def answer_unexpected_error(request: Request, request_id: str) -> Response:
    """Tells nothing but the request id: what went wrong is for the log."""
    return answer(request, INTERNAL, f"this is the service's fault; its log tells more under request id {request_id}")


def allowed_methods(request: Request) -> Iterator[str]:
    """Yield the methods that an address knows. Starlette names those of the first route, where several may share it.

    An address that the document has as it stands, such as /jobs/estimate, is not one of those with a parameter.
    """
    documented = request.app.openapi()["paths"].get(path_below(request.scope))
    if documented is not None:
        known = {method.upper() for method in documented}
        yield from sorted(known | ({"HEAD"} if "GET" in known else set()))
        return
    for method in METHODS:
        if is_served(request.scope, method):
            yield method


def is_served(scope: Scope, method: str) -> bool:
    """Return whether there is a route for this method at the path of the request. Whatever answers GET answers HEAD."""
    asked = {**scope, "method": method}
    found = any(route.matches(asked)[0] is Match.FULL for route in scope["app"].routes)
    return found or (method == "HEAD" and is_served(scope, "GET"))


def kind_of(error: type[ModelpressError]) -> Kind:
    status = next((STATUS[base] for base in error.__mro__ if base in STATUS), 500)
    return Kind(error.code, error.title, status, " ".join((error.__dict__.get("__doc__") or "").split()))


def all_kinds() -> dict[str, Kind]:
    """Return every kind of problem that an answer can name, by its code."""
    answered = [error for error in descendants(ModelpressError) if any(base in STATUS for base in error.__mro__)]
    return {kind.code: kind for kind in (*FRAMEWORK, *map(kind_of, answered))}


def descendants(base: type[ModelpressError]) -> Iterator[type[ModelpressError]]:
    for child in base.__subclasses__():
        yield child
        yield from descendants(child)
