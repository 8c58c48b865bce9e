"""The API as its command runs it, on a real socket, in a thread of the test's process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.api.server import make_server
from app.main import create_app
from app.serve import address_of, listen
from app.settings import ServerSettings
from tests.support.waiting import PATIENCE_SECONDS, wait_for


@contextmanager
def serving(settings: ServerSettings, *, is_open: bool = True) -> Iterator[str]:
    """Yield the address of an API with these settings."""
    with listen("127.0.0.1", 0) as listener:
        server = make_server(create_app(settings, is_open=is_open))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)


def connect(address: str, timeout_seconds: float = PATIENCE_SECONDS) -> socket.socket:
    """Return a fresh connection to the API."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout_seconds)
