"""A network between the service and its servers that can fall silent without closing anything."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr
from sqlalchemy import make_url

from app.settings import ServerSettings


class Proxy:
    """Forwards TCP connections to a server's address: a (host, port), or the path of a Unix socket."""

    def __init__(self, target: tuple[str, int] | Path) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.closing = False
        self.silent_new = False
        self.silenced: set[threading.Event] = set()
        self.flowing: set[threading.Event] = set()
        threading.Thread(target=self.accept, daemon=True).start()

    def fall_silent(self, *, new_too: bool = False) -> None:
        """Forward no further byte of the connections there are; with `new_too` also of those to come.

        Each side still acknowledges what it is sent, as a frozen server's kernel does.
        """
        self.silent_new = new_too
        for flow in list(self.flowing):
            flow.clear()

    def speak(self) -> None:
        """Forward everything again, also what has been held back."""
        self.silent_new = False
        for flow in list(self.flowing):
            flow.set()

    def accept(self) -> None:
        while not self.closing:
            with contextlib.suppress(OSError):
                client, _ = self.listener.accept()
                flow = threading.Event()
                if not self.silent_new:
                    flow.set()
                self.flowing.add(flow)
                threading.Thread(target=self.forward, args=(client, flow), daemon=True).start()

    def forward(self, client: socket.socket, flow: threading.Event) -> None:
        with client, contextlib.suppress(OSError):
            server = self.connect()
            with server:
                while not self.closing:
                    flow.wait(1)
                    readable, _, _ = select.select([client, server], [], [], 0.05)
                    for end in readable if flow.is_set() else ():
                        received = end.recv(1 << 16)
                        if not received:
                            return
                        (server if end is client else client).sendall(received)

    def connect(self) -> socket.socket:
        if isinstance(self.target, Path):
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self.target))
            return server
        return socket.create_connection(self.target)


def database_address(settings: ServerSettings) -> tuple[str, int] | Path:
    """Return where the settings' database listens."""
    url = make_url(settings.database_url.get_secret_value())
    directory = url.query.get("host")
    return Path(str(directory)) / ".s.PGSQL.5432" if directory else (str(url.host), url.port or 5432)


def database_behind(settings: ServerSettings, between: Proxy) -> ServerSettings:
    """Return the settings of a service that reaches its database through the proxy."""
    url = make_url(settings.database_url.get_secret_value())
    behind = url.set(host="127.0.0.1", port=between.port, query={}).render_as_string(hide_password=False)
    return settings.model_copy(update={"database_url": SecretStr(behind)})


def broker_address(settings: ServerSettings) -> tuple[str, int] | Path:
    """Return where the settings' broker listens."""
    url = urlsplit(settings.redis_url.get_secret_value())
    return Path(unquote(url.path)) if url.scheme == "redis+socket" else (str(url.hostname), url.port or 6379)


def broker_behind(settings: ServerSettings, between: Proxy) -> ServerSettings:
    """Return the settings of a service that reaches its broker through the proxy."""
    password = urlsplit(settings.redis_url.get_secret_value()).password
    behind = SecretStr(f"redis://:{password}@127.0.0.1:{between.port}/0")
    return settings.model_copy(update={"redis_url": behind})


@contextmanager
def proxy(target: tuple[str, int] | Path) -> Iterator[Proxy]:
    """Yield a proxy in front of a server."""
    between = Proxy(target)
    try:
        yield between
    finally:
        between.closing = True
        between.listener.close()
