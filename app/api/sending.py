"""Send a part of a file by the kernel, which copies it to the connection itself; reading it here takes twice as long.

ASGI has no message for that, so the server of this API offers one as an extension: a body message whose `file` is a
`FilePart` stands for its bytes.
"""

import asyncio
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
from anyio import to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.storage import FilePart

EXTENSION = "modelpress.file"
AT_ONCE_BYTES = 1 << 23
"""What one visit to a thread sends at most; it ends sooner when the client does not keep up."""
KEEPS_UP_MILLISECONDS = 1
"""A client that makes room within this time is sent more in the same visit."""
LOOK_SECONDS = 0.005


class Size:
    """A stand-in for bytes that the kernel sends: h11 asks for their number alone."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def with_files(app: ASGIApp, protocol: H11Protocol) -> ASGIApp:
    """Return the application with the extension, for requests of one connection."""

    async def extended(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_any(message: Message) -> None:
            part = message.get("file")
            await (send(message) if part is None else send_part(protocol, part))

        scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION: {}}
        await app(scope, receive, send_any)

    return extended


async def send_part(protocol: H11Protocol, part: FilePart) -> None:
    """Send a part of a file behind what was sent before; return when it has gone out, or the client has."""
    await protocol.flow.drain()
    while protocol.transport.get_write_buffer_size() and not protocol.cycle.disconnected:
        await asyncio.sleep(LOOK_SECONDS)
    size: Any = Size(part.stop - part.start)
    protocol.conn.send_with_data_passthrough(h11.Data(data=size))
    position = part.start
    with own_descriptor(protocol) as connection:
        while position < part.stop and not protocol.cycle.disconnected:
            asked = min(part.stop - position, AT_ONCE_BYTES)
            try:
                sent = await to_thread.run_sync(push, connection, part.descriptor, position, asked)
            except ConnectionError:
                protocol.transport.abort()
                return
            position += sent
            if sent < asked:
                await writable(protocol, connection)


@contextmanager
def own_descriptor(protocol: H11Protocol) -> Iterator[int]:
    """Yield a descriptor of the connection that stays valid while a thread uses it, whatever the transport does."""
    descriptor = os.dup(protocol.transport.get_extra_info("socket").fileno())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def push(connection: int, file: int, start: int, size: int) -> int:
    """Send bytes of a file until the client does not keep up; return how many. Raises OSError."""
    sent, room = 0, select.poll()
    room.register(connection, select.POLLOUT)
    while sent < size:
        try:
            count = os.sendfile(connection, file, start + sent, size - sent)
        except BlockingIOError:
            if room.poll(KEEPS_UP_MILLISECONDS):
                continue
            break
        if count == 0:
            raise OSError("the file is shorter than it was")
        sent += count
    return sent


async def writable(protocol: H11Protocol, connection: int) -> None:
    """Wait until the connection takes more, or is lost: the protocol closes one that takes nothing for too long."""
    protocol.pause_writing()
    resume: Callable[[], None] = protocol.resume_writing
    protocol.loop.add_writer(connection, resume)
    try:
        await protocol.flow.drain()
    finally:
        protocol.loop.remove_writer(connection)
