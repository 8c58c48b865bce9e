"""The front door: what a person sees who opens the address of the service."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse

from app.api.addresses import address

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show_documentation(request: Request) -> RedirectResponse:
    """Lead to the documentation."""
    return RedirectResponse(address(request, "/docs"))
