"""Requests that depend on an entity tag or ask for a range of bytes (RFC 9110, sections 13 and 14)."""

import re

from fastapi import HTTPException, Request, status

SINGLE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


def unchanged(request: Request, etag: str) -> bool:
    """Whether `If-None-Match` says that the client already has this representation."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))


def requested_range(request: Request, size: int, etag: str) -> range | None:
    """The positions of the bytes that are asked for, or None for the whole.

    A header that is malformed or asks for several ranges is ignored, as the standard allows, and that of any request
    but GET, as it demands; so is one whose `If-Range` does not hold this very tag, for the client would append to
    something else.

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
    if positions:
        return positions
    raise HTTPException(
        status.HTTP_416_RANGE_NOT_SATISFIABLE,
        f"there are only {size} bytes",
        headers={"Content-Range": f"bytes */{size}"},
    )
