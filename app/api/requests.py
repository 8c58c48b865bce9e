"""Around every request: an id, a line in the log, a limit on its body, and an answer when all else has failed."""

import logging
import re
import secrets
from time import monotonic

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import answer_too_large, answer_unexpected_error

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger(__name__)


class RequestFrame:
    """Neither bodies nor queries nor headers are logged, since they may hold secrets."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        request_id = given_id(request) or secrets.token_hex(16)
        started, status = monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        app = answer_too_large(request, self.max_body_bytes) if self.declares_too_much(request) else self.app
        try:
            await app(scope, receive, send_with_id)
        except Exception:
            log.exception("request_failed", extra={"request_id": request_id})
            if status:
                raise
            await answer_unexpected_error(request, request_id)(scope, receive, send_with_id)
        finally:
            log.info(
                "request_answered",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(monotonic() - started, 4),
                },
            )

    def declares_too_much(self, request: Request) -> bool:
        """The framework counts the bytes that come, and answers in plain text when their number was told before."""
        declared = request.headers.get("content-length", "")
        return declared.isdecimal() and len(declared.lstrip("0")) < 19 and int(declared) > self.max_body_bytes


def given_id(request: Request) -> str | None:
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else None
