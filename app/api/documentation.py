"""Additions to the OpenAPI document beyond the types: examples, problem documents and downloads."""

import re
from typing import Any

from fastapi import FastAPI

from modelpress.contract.job import Problem

PROBLEM_TYPE = "application/problem+json"

Responses = dict[int | str, dict[str, Any]]

REASONS = {
    400: "The request cannot be read",
    401: "A valid key is needed",
    403: "The key does not allow this",
    404: "There is no such thing",
    408: "The body comes too slowly",
    409: "The state of the thing does not allow this",
    413: "The body is too large",
    415: "The body is not JSON",
    416: "The range lies outside the file",
    422: "The request is refused; the problem names each wrong field",
    429: "The team has reached a limit; Retry-After tells when to try again",
    503: "A service that this one depends on does not answer; try again later",
}

DESCRIPTION = """
Compresses transformer language models: post a model and a target ratio, poll the job, and download a checkpoint that
opens with transformers.

Every error is a problem document (RFC 9457); its `type` is an address on this service that explains it.
"""

JOB_EXAMPLE: dict[str, Any] = {
    "id": "job_5f0c8a2e9b1d4c7f60a3e812",
    "state": "running",
    "stage": "compress",
    "progress": 0.46,
    "detail": "block 12 of 30",
    "seconds_left": 170.0,
    "attempt": 1,
    "attempts": [{"number": 1, "worker": "gpu-3/41", "started_at": "2026-11-21T09:30:02Z"}],
    "timestamps": {"queued": "2026-11-21T09:30:00Z", "running": "2026-11-21T09:30:02Z"},
    "recipe": {"model": "openai-community/gpt2", "target_ratio": 1.5, "method": {"name": "low_rank"}, "seed": 0},
    "source": {
        "reference": "openai-community/gpt2",
        "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "model_type": "gpt2",
        "parameters": 124439808,
    },
    "links": {"self": "/jobs/job_5f0c8a2e9b1d4c7f60a3e812", "cancel": "/jobs/job_5f0c8a2e9b1d4c7f60a3e812/cancel"},
}

PROBLEM_EXAMPLE: dict[str, Any] = {
    "type": "/problems/invalid_request",
    "title": "The request is not valid",
    "status": 422,
    "detail": "target_ratio: must be above 1, since it is bytes before / after; send 1.25",
    "instance": "/jobs",
    "errors": [{"field": "target_ratio", "message": "must be above 1, since it is bytes before / after; send 1.25"}],
}

HEADERS: dict[str, str] = {
    "Accept-Ranges": "`bytes`",
    "Content-Disposition": "the name of the file",
    "Content-Range": "the range that is sent, and the size of the whole",
    "ETag": "send it as `If-None-Match` to be told only of changes",
    "Location": "address of what was made",
    "RateLimit": "how many requests the team has left, and the seconds until there are more",
    "RateLimit-Policy": "how many requests a team may make in how many seconds",
    "Repr-Digest": "SHA-256 of the whole file (RFC 9530)",
    "Retry-After": "seconds after which it is worth asking again",
    "Upload-Offset": "how many bytes of the file have arrived",
    "X-Request-Id": "id of the request, under which the service's log has it; a request may bring its own",
}
MADE = {
    "submit_job": ("202", "job_id"),
    "retry_job": ("202", "job_id"),
    "begin_upload": ("201", "upload_id"),
    "create_key": ("201", "key_id"),
    "create_webhook": ("201", "webhook_id"),
    "try_webhook": ("202", "delivery_id"),
}
"""What makes something: the status of the answer, and the parameter of other calls that takes its id."""
POSTED = ("Location", "Retry-After")
PARAMETER = re.compile(r"{(\w+)}")


def headers(*names: str) -> dict[str, Any]:
    """Return the documentation of these headers of an answer."""
    return {name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in names}


def asked_by_header(name: str, description: str) -> dict[str, Any]:
    """Return the documentation of a header that a request may have."""
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


IF_NONE_MATCH = asked_by_header("If-None-Match", "the `ETag` that the client has; if it is still right, 304")
CONDITIONS = [
    asked_by_header("Range", "the bytes wanted, such as `bytes=1000-`; several ranges are ignored"),
    asked_by_header("If-Range", "the `ETag` of what the client has; if it is another now, everything is sent"),
    IF_NONE_MATCH,
]
NOT_MODIFIED: Responses = {304: {"description": "It is as `If-None-Match` says", "headers": headers("ETag")}}


def downloads(media_type: str) -> Responses:
    """Return the documentation of the answers with bytes of this type."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    named = headers("ETag", "Repr-Digest", "Accept-Ranges", "Content-Disposition")
    if media_type == "application/x-tar":
        del named["Repr-Digest"]
    part = {"description": "The range of bytes that was asked for", "content": content}
    return {
        200: {"description": "All bytes", "content": content, "headers": named},
        206: part | {"headers": named | headers("Content-Range")},
        **NOT_MODIFIED,
    }


def job_at(code: int, *named: str) -> Responses:
    """Return the documentation of an answer with a job, for the status `code` and with these headers."""
    content = {"application/json": {"example": JOB_EXAMPLE}}
    return {code: {"description": "The job", "content": content, "headers": headers(*named)}}


def refusals(*codes: int) -> Responses:
    """Return the documentation of the problems that an endpoint answers with: those of `codes`, and any other."""
    limited = {429} if 401 in codes else set()
    named: Responses = {code: {"model": Problem, "description": REASONS[code]} for code in sorted({*codes, *limited})}
    return named | {"default": {"model": Problem, "description": "Any other problem"}}


def install(app: FastAPI) -> None:
    """Complete the OpenAPI document of `app` by what FastAPI cannot know."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        fresh = app.openapi_schema is None
        document = generate()
        if fresh:
            for operations in document["paths"].values():
                for operation in operations.values():
                    complete(operation["responses"])
                    if "401" in operation["responses"]:
                        tell_limits(operation["responses"])
            link(document["paths"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def tell_limits(responses: dict[str, dict[str, Any]]) -> None:
    """Give every answer that follows upon a key what is left of the team's requests."""
    for code, response in responses.items():
        if code != "401":
            response.setdefault("headers", {}).update(headers("RateLimit", "RateLimit-Policy"))


def link(paths: dict[str, dict[str, Any]]) -> None:
    """Tell of each answer with something new what can be done with its id."""
    for path, operations in paths.items():
        for operation in operations.values():
            if operation["operationId"] in MADE:
                code, parameter = MADE[operation["operationId"]]
                known = {name: f"$request.path.{name}" for name in PARAMETER.findall(path)}
                operation["responses"][code]["links"] = {
                    other["operationId"]: {
                        "operationId": other["operationId"],
                        "parameters": {parameter: "$response.body#/id"}
                        | {name: asked for name, asked in known.items() if f"{{{name}}}" in target},
                    }
                    for target, others in paths.items()
                    for other in others.values()
                    if f"{{{parameter}}}" in target
                }


def complete(responses: dict[str, dict[str, Any]]) -> None:
    """Give every answer its request id, and every error the media type of a problem document."""
    for code, response in responses.items():
        named = response.setdefault("headers", {})
        named |= headers("X-Request-Id")
        if code == "default" or int(code) >= 400:
            (schema,) = response["content"].values()
            if code == "422":
                schema["example"] = PROBLEM_EXAMPLE
            response["content"] = {PROBLEM_TYPE: schema}
        if code in ("429", "503"):
            named |= headers("Retry-After")
