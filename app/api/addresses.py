"""The addresses of this API as clients reach them: below the path that a proxy publishes it under, and the version."""

from typing import TypeVar

from fastapi import Request
from starlette.types import Scope

from modelpress.contract.job import Job, JobSummary

Placed = TypeVar("Placed", Job, JobSummary)

VERSION = "/v1"
"""The version of the API. Addresses without it lead to the newest one."""


def take_version(scope: Scope) -> Scope:
    """Return the scope of the request with the version, if its path begins with one, as part of the root path."""
    root, path = scope.get("root_path", ""), path_below(scope)
    if path != VERSION and not path.startswith(f"{VERSION}/"):
        return scope
    return {**scope, "root_path": root + VERSION, "path": root + path}


def path_below(scope: Scope) -> str:
    """Return the path of the request below the root path, whether or not a proxy has cut that off."""
    root, path = scope.get("root_path", ""), str(scope["path"])
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def address(request: Request, path: str) -> str:
    """Return a path of this API as the client of this request reaches it."""
    return root_of(request) + path


def root_of(request: Request) -> str:
    """Return the path below which the client of this request reaches the API."""
    return str(request.scope.get("root_path", ""))


def placed(request: Request, job: Placed) -> Placed:
    """Return the job with links that the client of this request can follow."""
    return job.model_copy(update={"links": {name: address(request, path) for name, path in job.links.items()}})
