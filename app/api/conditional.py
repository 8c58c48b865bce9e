"""Conditional requests and range requests (RFC 9110, sections 13 and 14)."""

import re

from fastapi import HTTPException, Request, status

SINGLE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


def unchanged(request: Request, etag: str) -> bool:
    """Return whether `If-None-Match` says that the client already has this representation."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))


def requested_range(request: Request, size: int, etag: str) -> range | None:
    """Return the requested positions of bytes, or None for all bytes.

    The header is ignored if it is malformed or asks for several ranges, which the standard allows, and for any method
    but GET, as it demands. It is also ignored if `If-Range` holds another tag, because the client would then append
    bytes of another file.

    Raises:
        HTTPException: 416, the range lies outside the representation.
    """
    asked = SINGLE_RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if request.method != "GET" or asked is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last = (int(number) if number else None for number in asked.groups())
    if first is None:
        if last is None:
            return None
        return satisfiable(range(max(size - last, 0), size), size)
    if last is not None and last < first:
        return None
    return satisfiable(range(first, size if last is None else min(last + 1, size)), size)


def satisfiable(positions: range, size: int) -> range:
    """Return the positions if there are any.

    Raises:
        HTTPException: 416, there are none.
    """
    if positions:
        return positions
    raise HTTPException(
        status.HTTP_416_RANGE_NOT_SATISFIABLE,
        f"there are only {size} bytes",
        headers={"Content-Range": f"bytes */{size}"},
    )
