"""Where a request comes from: this service's own pages, programs, or the page of another site in a browser."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import Request

from app.errors import ForeignPage


def refuse_foreign_pages(request: Request) -> None:
    """Raise ForeignPage for a request that the page of another site makes a browser on this machine send.

    Such a page has an origin of its own, or a name of its own that it lets lead to this machine.
    """
    host, origin = request.headers.get("host"), request.headers.get("origin")
    if host is not None and not is_local(host):
        raise ForeignPage(f"this service asks for no keys, so it answers requests to localhost alone, not to {host!r}")
    if origin is not None and request.headers.get("sec-fetch-site") != "same-origin" and not is_own(request, origin):
        raise ForeignPage(f"this service asks for no keys, so it answers no pages of other sites, such as {origin!r}")


def is_own(request: Request, origin: str) -> bool:
    """Return whether an origin is that of this service, under the name that the browser or its proxy has sent.

    No browser lets a foreign page set X-Forwarded-Host without asking first, which the service never allows.
    """
    forwarded = request.headers.get("x-forwarded-host", "").split(",")[0].strip()
    return urlsplit(origin).netloc in (request.headers.get("host"), forwarded or None)


def is_local(host: str) -> bool:
    """Return whether a Host header names this machine, as seen from itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
