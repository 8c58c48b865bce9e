"""Around every request: an id, a line in the log, a limit on its body, and an answer when all else has failed."""

import logging
import re
import secrets
from time import monotonic

from fastapi import HTTPException, Request, status
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import answer_unexpected_error

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger(__name__)


class RequestFrame:
    """Neither bodies nor queries nor headers are logged, since they may hold secrets.

    The framework's own limit on bodies answers in plain text, which is why it is not used.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        request_id = given_id(request) or secrets.token_hex(16)
        started, answered = monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, limited(receive, self.max_body_bytes), send_with_id)
        except Exception:
            log.exception("request_failed", extra={"request_id": request_id})
            if answered:
                raise
            await answer_unexpected_error(request, request_id)(scope, receive, send_with_id)
        finally:
            log.info(
                "request_answered",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": answered,
                    "seconds": round(monotonic() - started, 4),
                },
            )


def given_id(request: Request) -> str | None:
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else None


def limited(receive: Receive, max_body_bytes: int) -> Receive:
    """Raises HTTPException 413 as soon as more of a body has come."""
    received = 0

    async def receive_counting() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_body_bytes:
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, f"a body has at most {max_body_bytes} bytes")
        return message

    return receive_counting
