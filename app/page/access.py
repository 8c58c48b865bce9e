"""Who uses the page: a key in a cookie that scripts cannot read, and no change that another site asks for."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request

from app.api.deps import Keys, identify, require_scope
from app.api.origins import is_own
from app.errors import ForeignPage
from app.jobs.service import JobService
from app.keys.callers import Caller
from modelpress.contract.access import Scope

COOKIE = "modelpress_key"
HOME = "/page"
"""Where the page lies. The cookie is sent there alone, never to the API."""
LONGEST_KEY = 3800
"""Browsers drop cookies of more than 4096 bytes, names and attributes included."""
KEY: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")


@dataclass(frozen=True)
class Visitor:
    """The caller who looks at the page."""

    caller: Caller
    asks_keys: bool
    """Whether the service asks for keys, so that one can sign out."""

    def may(self, scope: str) -> bool:
        """Return whether the visitor's key has the scope."""
        return Scope(scope) in self.caller.scopes


def visiting(scope: Scope) -> Callable[..., Awaitable[JobService]]:
    """Return a dependency on the jobs of a visitor whose key has this scope."""

    async def get_service(request: Request, keys: Keys) -> JobService:
        caller = await identify(request, request.cookies.get(COOKIE))
        request.state.visitor = Visitor(caller, not keys.is_open)
        require_scope(caller, scope)
        service: JobService = request.app.state.service
        return service.of(caller)

    return get_service


async def refuse_foreign(request: Request) -> None:
    """Raise ForeignPage for a change that does not come from a page of this service.

    `SameSite=Strict` keeps the cookie from foreign requests already; but where no keys are asked for, there is none.
    """
    if request.method in ("GET", "HEAD"):
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is None and origin is not None and is_own(request, origin):
        return
    if site != "same-origin":
        raise ForeignPage("only a page of this service may ask for this; programs use the API")


Reading = Annotated[JobService, Depends(visiting(Scope.READ))]
Submitting = Annotated[JobService, Depends(visiting(Scope.SUBMIT))]
