"""Around every request: an id, a line in the log, limits of size and time, an answer when all else has failed."""

import asyncio
import logging
import re
import secrets
from time import monotonic

from fastapi import HTTPException, Request, Response, status
from starlette.datastructures import MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.addresses import path_below, take_version
from app.api.metrics import Metrics
from app.api.pace import wait_seconds
from app.api.probes import Probes
from app.api.problems import answer_late, answer_silent_database, answer_unexpected_error
from app.logs import REQUEST

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
REQUEST_SECONDS = 10.0
BODY_SECONDS = 8.0
MAX_PIECE_BYTES = 1 << 26
PIECE_SECONDS = 600.0
"""How long a piece of a file may take to arrive, and the whole file then to be checked and stored."""
PROMPT_SECONDS = 1.0
"""A request that takes longer is looked after: it may wait for something that does not answer."""
LOOK_SECONDS = 0.1

log = logging.getLogger(__name__)


class RequestFrame:
    """Neither bodies nor queries nor headers are logged, since they may hold secrets.

    The framework's own limit on bodies answers in plain text, which is why it is not used.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, root_path: str) -> None:
        self.app = app
        self.root_path = root_path
        self.max_body_bytes = max_body_bytes
        self.given_up: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = take_version({**scope, "root_path": self.root_path, "state": dict(scope.get("state") or {})})
        request = Request(scope)
        exchange = Exchange(send, given_id(request) or secrets.token_hex(16))
        scope["state"]["exchange"] = exchange
        REQUEST.set(exchange.request_id)
        started = monotonic()
        try:
            await self.answer(request, self.body(scope, receive).receive, exchange)
        except Exception:  # the last place where a fault can still become an answer; it is logged
            log.exception("request_failed", extra={"request_id": exchange.request_id})
            if exchange.status:
                raise
            await exchange.conclude(request, answer_unexpected_error(request, exchange.request_id))
        finally:
            metrics: Metrics = request.app.state.metrics
            metrics.observe(scope, exchange.status, started)
            log.info(
                "request_answered",
                extra={
                    "request_id": exchange.request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": exchange.status,
                    "client": scope["client"][0] if scope.get("client") else None,
                    "seconds": round(monotonic() - started, 4),
                },
            )

    def body(self, scope: Scope, receive: Receive) -> "Body":
        """Return the body of a request: small and soon there, unless it is a piece of a file."""
        if is_piece(scope):
            return Body(receive, MAX_PIECE_BYTES, whole=False)
        return Body(receive, self.max_body_bytes)

    async def answer(self, request: Request, receive: Receive, exchange: "Exchange") -> None:
        """Let the application answer, or answer in its place when it has not begun to in time.

        It then goes on unheard: a thread that waits for a server cannot be stopped, only left to its own limits.
        """
        work = asyncio.create_task(self.application(request.scope, receive, exchange.send))
        try:
            late = await self.lateness(request, work, exchange)
            if late is None:
                await work
                return
        except BaseException:  # cancellation included: nobody waits for the work any more
            work.cancel()
            raise
        self.given_up.add(work)
        work.add_done_callback(self.forget)
        log.warning("request_given_up", extra={"request_id": exchange.request_id})
        await exchange.conclude(request, late)

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application. HEAD is answered as GET is, without the body, where it has no answer of its own."""
        if scope["method"] == "HEAD" and not any(
            route.matches(scope)[0] is Match.FULL for route in scope["app"].routes
        ):
            asked = {**scope, "method": "GET"}
            await self.app(asked, receive, without_body(send))
            scope["route"] = asked.get("route")
        else:
            await self.app(scope, receive, send)

    async def lateness(self, request: Request, work: "asyncio.Task[None]", exchange: "Exchange") -> Response | None:
        """Wait until the application has begun to answer, or it is too late: then return what to answer instead."""
        started, pause = monotonic(), PROMPT_SECONDS
        patience = REQUEST_SECONDS + wait_seconds(request.headers.get("prefer"))
        if is_piece(request.scope):
            patience = PIECE_SECONDS
        while True:
            await asyncio.wait({work}, timeout=pause)
            if work.done() or exchange.status:
                return None
            pause = LOOK_SECONDS
            if monotonic() - started > patience:
                return answer_late(request)
            probes: Probes = request.app.state.probes
            if probes.database.silent:
                return answer_silent_database(request)

    def forget(self, work: "asyncio.Task[None]") -> None:
        """Let go of a request that was given up and has come to its end; nobody waits for its error."""
        self.given_up.discard(work)
        if not work.cancelled():
            work.exception()


class Exchange:
    """The answer to one request: its status once it has begun, 0 before, its id, and further headers."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.pass_on = send
        self.request_id = request_id
        self.status = 0
        self.concluded = False
        self.headers: dict[str, str] = {}

    async def send(self, message: Message) -> None:
        """Send what the application answers, unless it has been answered in its place."""
        if not self.concluded:
            await self.send_with_id(message)

    async def conclude(self, request: Request, response: Response) -> None:
        """Answer in the application's place."""
        self.concluded = True
        await response(request.scope, request.receive, self.send_with_id)

    async def send_with_id(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message).update(self.headers | {"X-Request-Id": self.request_id})
        await self.pass_on(message)


def without_body(send: Send) -> Send:
    """Return a `send` that ends the answer behind its head: the body of a stream might not end for hours."""

    async def pass_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return pass_on


def is_piece(scope: Scope) -> bool:
    """Return whether the request sends a piece of a file."""
    return scope["method"] == "PATCH" and path_below(scope).startswith("/uploads/")


def given_id(request: Request) -> str | None:
    """Return the id that the request brings, if it belongs into a log."""
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else None


class Body:
    """A request's body, of which only so much is read, and for so long."""

    def __init__(self, receive: Receive, max_bytes: int, *, whole: bool = True) -> None:
        """Read from `receive`, all of it within BODY_SECONDS; if not `whole`, something within each such time."""
        self.whole = whole
        self.pass_on = receive
        self.max_bytes = max_bytes
        self.received = 0
        self.complete = False
        self.deadline = monotonic() + BODY_SECONDS

    async def receive(self) -> Message:
        """Return the next message. Raises HTTPException: 413 as soon as it is too much, 408 when it takes too long."""
        if self.complete:
            return await self.pass_on()
        try:
            message = await asyncio.wait_for(self.pass_on(), max(self.deadline - monotonic(), 0))
        except TimeoutError:
            raise HTTPException(
                status.HTTP_408_REQUEST_TIMEOUT, f"the body was not complete within {BODY_SECONDS:g} seconds"
            ) from None
        if not self.whole:
            self.deadline = monotonic() + BODY_SECONDS
        self.complete = not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        if self.received > self.max_bytes:
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, f"a body has at most {self.max_bytes} bytes")
        return message
