"""HTML from templates: everything escaped, links as the browser reaches them, and nothing from elsewhere allowed."""

import hashlib
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.api.addresses import address
from app.page import units

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Vary": "Accept, Cookie",
    "X-Content-Type-Options": "nosniff",
}
ASSETS: Final[Mapping[str, bytes]] = {
    name: files("app.page").joinpath("static", name).read_bytes()
    for name in (
        "page.css",
        "page.js",
        "icon.svg",
        "vendor/htmx.js",
        "vendor/idiomorph.js",
        "vendor/uplot.js",
        "vendor/uplot.css",
    )
}
DIGEST = hashlib.sha256(b"".join(ASSETS.values())).hexdigest()[:12]
"""Part of the assets' addresses, so that a browser may keep them for ever and yet has the newest."""

ENVIRONMENT = Environment(
    loader=PackageLoader("app.page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
ENVIRONMENT.filters |= units.FILTERS


def render(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a template as a page, with `values` and what every template is given."""
    link = partial(address, request)
    given = {
        "link": link,
        "asset": lambda name: link(f"/page/static/{DIGEST}/{name}"),
        "visitor": getattr(request.state, "visitor", None),
    }
    return HTMLResponse(ENVIRONMENT.get_template(template).render(given | values), status, dict(HEADERS))
