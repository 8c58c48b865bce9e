"""The front door: the page for browsers, the documentation for everybody else. And the page's own files."""

import mimetypes

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from app.api.addresses import address
from app.page.access import HOME
from app.page.rendering import ASSETS

router = APIRouter(include_in_schema=False)


@router.get("/")
async def enter(request: Request) -> RedirectResponse:
    """Lead a browser to the page, and a program to the documentation."""
    is_browser = "text/html" in request.headers.get("accept", "")
    return RedirectResponse(address(request, HOME if is_browser else "/docs"), headers={"Vary": "Accept"})


@router.get(HOME + "/static/{digest}/{name:path}")
async def send_asset(digest: str, name: str) -> Response:
    """Send a file of the page. Its address changes with its content, so that browsers may keep it."""
    if name not in ASSETS:
        raise HTTPException(404, "the page has no such file")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(ASSETS[name], media_type=mimetypes.guess_type(name)[0], headers=headers)
