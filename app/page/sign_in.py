"""Signing in with a key, and out."""

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.api.addresses import address
from app.api.deps import Keys
from app.errors import Unauthenticated
from app.logs import REQUEST
from app.page.access import COOKIE, HOME, KEY, LONGEST_KEY, refuse_foreign
from app.page.rendering import render

UNKNOWN = "This key is unknown, expired or revoked."

router = APIRouter(prefix=HOME, include_in_schema=False, dependencies=[Depends(refuse_foreign)])

Next = Annotated[str, Query(alias="next", max_length=2000)]


@router.get("/sign-in")
async def show_sign_in(request: Request, keys: Keys, target: Next = "") -> Response:
    """Ask for a key, unless the service asks for none."""
    if keys.is_open:
        return RedirectResponse(own(request, target), 303)
    return render(request, "sign_in.html", target=target, fault=None)


@router.post("/sign-in")
async def sign_in(
    request: Request,
    keys: Keys,
    key: Annotated[str, Form(max_length=LONGEST_KEY)] = "",
    target: Annotated[str, Form(alias="next", max_length=2000)] = "",
) -> Response:
    """Keep a valid key in a cookie until the browser is closed, and lead to what was asked for."""
    key = key.strip()
    try:
        if not KEY.fullmatch(key):
            raise Unauthenticated(UNKNOWN)
        limiter = request.app.state.provider_threads if keys.asks_provider(key) else None
        await to_thread.run_sync(partial(keys.caller, key, REQUEST.get()), limiter=limiter)
    except Unauthenticated:
        return render(request, "sign_in.html", 401, target=target, fault=UNKNOWN)
    response = RedirectResponse(own(request, target), 303)
    write_cookie(request, response, key)
    return response


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """Forget the key."""
    response = RedirectResponse(address(request, f"{HOME}/sign-in"), 303)
    write_cookie(request, response, "", max_age=0)
    return response


def write_cookie(request: Request, response: Response, key: str, max_age: int | None = None) -> None:
    """Set the cookie, out of reach for scripts and other sites; where https is used, for https alone."""
    forwarded = request.headers.get("x-forwarded-proto", "").split(",")[0].strip()
    response.set_cookie(
        COOKIE,
        key,
        max_age=max_age,
        path=address(request, HOME),
        secure="https" in (request.url.scheme, forwarded),
        httponly=True,
        samesite="strict",
    )


def own(request: Request, target: str) -> str:
    """Return an address of the page: the target, if it is one."""
    home = address(request, HOME)
    return target if target.startswith(home) and target.isprintable() and "\\" not in target else home
