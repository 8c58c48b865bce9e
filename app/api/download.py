"""Downloads that can be interrupted and resumed: ranges, strong entity tags and digests."""

import base64
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import islice

from anyio import to_thread
from fastapi import Request, Response, status
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.conditional import requested_range, unchanged
from app.api.sending import EXTENSION
from app.storage import Chunks, LocalChunks

CHUNKS_AT_ONCE = 4
"""Chunks of a file that are read by one visit to a thread, and that a client that has stalled keeps in memory."""


@dataclass(frozen=True)
class Download:
    """A representation whose size and identity are known before its first byte is read."""

    filename: str
    size: int
    etag: str
    media_type: str
    read: Callable[[int, int], Chunks]
    sha256: str | None = None
    """Hexadecimal SHA-256; None if computing it would require reading everything first."""


def respond(request: Request, download: Download) -> Response:
    """Return the answer to GET or HEAD: 200, 206 or 304.

    `no-cache` lets a client keep the bytes but makes it revalidate them, which costs one 304.

    Raises:
        HTTPException: 416, the requested range lies outside the file.
    """
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{download.filename}"',
        "ETag": download.etag,
        "X-Content-Type-Options": "nosniff",
    }
    if download.sha256 is not None:
        digest = base64.b64encode(bytes.fromhex(download.sha256)).decode()
        headers["Repr-Digest"] = f"sha-256=:{digest}:"
    if unchanged(request, download.etag):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    code = status.HTTP_200_OK
    positions = requested_range(request, download.size, download.etag)
    if positions is None:
        positions = range(download.size)
    else:
        code = status.HTTP_206_PARTIAL_CONTENT
        headers["Content-Range"] = f"bytes {positions[0]}-{positions[-1]}/{download.size}"
    headers["Content-Length"] = str(len(positions))
    if request.method == "HEAD":
        return Response(status_code=code, headers=headers, media_type=download.media_type)
    content = download.read(positions.start, positions.stop)
    return ClosingResponse(content, status_code=code, headers=headers, media_type=download.media_type)


async def several_at_once(content: Chunks) -> AsyncIterator[bytes]:
    """Yield what a thread reads: going there and back takes as long as reading one chunk."""
    while chunks := await to_thread.run_sync(lambda: list(islice(content, CHUNKS_AT_ONCE))):
        for chunk in chunks:
            yield chunk


class ClosingResponse(StreamingResponse):
    """A streamed answer that lets go of its file when the client has gone, and not when memory is next tidied up."""

    def __init__(self, content: Chunks, status_code: int, headers: dict[str, str], media_type: str) -> None:
        super().__init__(several_at_once(content), status_code, headers, media_type)
        self.content = content
        self.by_kernel = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.by_kernel = EXTENSION in (scope.get("extensions") or {})
        try:
            await super().__call__(scope, receive, send)
        finally:
            # No thread reads by now: a cancelled answer ends after the chunk that it was waiting for.
            self.content.close()

    async def stream_response(self, send: Send) -> None:
        if not self.by_kernel or not isinstance(self.content, LocalChunks):
            await super().stream_response(send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "file": self.content.part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
