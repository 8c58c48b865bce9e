"""The HTTP server around the API, which lets nobody hold a connection without using it."""

import asyncio
import resource
from time import monotonic
from typing import ClassVar

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.sending import with_files

DRAIN_SECONDS = 5
HEAD_SECONDS = 10.0
WRITE_SECONDS = 30.0
RESERVED_DESCRIPTORS = 200
"""For the database, the broker, files that are sent, and whatever the process has open besides."""


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server for `app` that has yet to be run; it writes no logs of its own but warnings."""
    PatientProtocol.most_connections = (descriptors() - RESERVED_DESCRIPTORS) // DESCRIPTORS_A_CONNECTION
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=PatientProtocol,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )


def descriptors() -> int:
    """Return how many descriptors the process may have open, after asking for as many as it is allowed to."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    return allowed if allowed != resource.RLIM_INFINITY else 1 << 20


DESCRIPTORS_A_CONNECTION = 2
"""A socket, and the file that is sent or received over it."""


class PatientProtocol(H11Protocol):
    """A connection that is closed when a request's head takes too long, or nobody reads the answer.

    When there are too many connections, the one that has been waiting for a request for longest makes room; where none
    waits, the one whose client has been reading nothing for longest; where all read, the one whose answer takes
    longest, such as a stream of events, which its client takes up again.
    """

    most_connections: ClassVar[int] = 1 << 20

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn types it wider
        super().connection_made(transport)
        self.app = with_files(self.app, self)
        self.waiting_since: float | None = monotonic()
        self.head_limit: asyncio.TimerHandle | None = self.loop.call_later(HEAD_SECONDS, transport.abort)
        self.write_limit: asyncio.TimerHandle | None = None
        self.unread_since: float | None = None
        self.answering_since = monotonic()
        if len(self.connections) > self.most_connections:
            self.make_room()

    def make_room(self) -> None:
        """Close the most useless connection but this one."""
        others = [each for each in self.connections if isinstance(each, PatientProtocol) and each is not self]
        oldest = min(others, key=PatientProtocol.usefulness, default=self)
        self.connections.discard(oldest)
        oldest.transport.abort()

    def usefulness(self) -> tuple[int, float]:
        """Return a rank that is smaller for a connection that is idle, not read, or longer so than another."""
        times = (self.waiting_since, self.unread_since, self.answering_since)
        return min((rank, since) for rank, since in enumerate(times) if since is not None)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.head_came()
        elif self.head_limit is None:
            self.await_head()

    def head_came(self) -> None:
        """Stop waiting for a request."""
        if self.waiting_since is not None:
            self.waiting_since, self.answering_since = None, monotonic()
        if self.head_limit is not None:
            self.head_limit.cancel()
            self.head_limit = None

    def await_head(self) -> None:
        """Begin to wait for a request's head, of which the first bytes have come."""
        self.waiting_since = monotonic()
        self.head_limit = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def on_response_complete(self) -> None:
        self.waiting_since = monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread_since = monotonic()
        if self.write_limit is None:
            self.write_limit = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread_since = None
        if self.write_limit is not None:
            self.write_limit.cancel()
            self.write_limit = None

    def connection_lost(self, exc: Exception | None) -> None:
        for limit in (self.head_limit, self.write_limit):
            if limit is not None:
                limit.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
