"""Additions to the OpenAPI document beyond the types: examples, problem documents and downloads."""

from typing import Any

from fastapi import FastAPI

from app.contract.job import Problem

PROBLEM_TYPE = "application/problem+json"

Responses = dict[int | str, dict[str, Any]]

REASONS = {
    400: "The request cannot be read",
    404: "There is no such thing",
    409: "The job has ended already, or not yet",
    413: "The body is too large",
    415: "The body is not JSON",
    416: "The range lies outside the file",
    422: "The request is refused; the problem names each wrong field",
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
    "detail": "target_ratio: must be above 1, since it is stored parameters before / after; send 1.25",
    "instance": "/jobs",
    "errors": [
        {"field": "target_ratio", "message": "must be above 1, since it is stored parameters before / after; send 1.25"}
    ],
}

NOT_MODIFIED: Responses = {304: {"description": "The job is as `If-None-Match` says"}}
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
BYTES: Responses = {
    200: {"description": "All bytes", "content": BINARY},
    206: {"description": "The range of bytes that was asked for", "content": BINARY},
    304: {"description": "The bytes are as `If-None-Match` says"},
}


def job_at(code: int) -> Responses:
    """Return the documentation of an answer with a job, for the status `code`."""
    return {code: {"description": "The job", "content": {"application/json": {"example": JOB_EXAMPLE}}}}


def refusals(*codes: int) -> Responses:
    """Return the documentation of the problems that an endpoint answers with: those of `codes`, and any other."""
    named: Responses = {code: {"model": Problem, "description": REASONS[code]} for code in codes}
    return named | {"default": {"model": Problem, "description": "Any other problem"}}


def install(app: FastAPI) -> None:
    """Give problem documents their media type in the OpenAPI document of `app`, which FastAPI does not."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        fresh = app.openapi_schema is None
        document = generate()
        if fresh:
            retype_problems(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def retype_problems(document: dict[str, Any]) -> None:
    """Change the media type of every error answer in an OpenAPI document to that of a problem document."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for code, response in operation["responses"].items():
                if code == "default" or int(code) >= 400:
                    schema = response["content"].pop("application/json")
                    if code == "422":
                        schema["example"] = PROBLEM_EXAMPLE
                    response["content"] = {PROBLEM_TYPE: schema}
