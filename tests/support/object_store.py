"""An object store that speaks S3, in a thread of the test's process, with the faults that a test asks for."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Answer = Callable[..., Any]
CUT_BYTES = 10


@dataclass
class Store:
    """The address of the store, and its faults to come.

    Attributes:
        faults: for each coming request, as long as there are some: 503, or "cut" for an answer that breaks off, or
            "slow" for one that comes late.
        asked: method and path of each request.
    """

    url: str = ""
    faults: list[Any] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a process finds the store."""
        return {
            "AWS_ACCESS_KEY_ID": "access",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-store",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }

    def empty(self) -> None:
        """Forget everything, and answer well; there is one empty bucket."""
        self.faults = []
        for path, method in (("moto-api/reset", "POST"), ("bucket", "PUT")):
            httpx2.request(method, f"{self.url}/{path}").raise_for_status()
        self.asked = []


@contextmanager
def running_store() -> Iterator[Store]:
    """Run a store."""
    store = Store()
    store_app = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Answer) -> Iterable[bytes]:
        store.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        fault = store.faults.pop(0) if store.faults else None
        if fault == 503:
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if fault == "slow":
            time.sleep(0.5)
        content: Iterable[bytes] = store_app(environ, start_response)
        return [b"".join(content)[:CUT_BYTES]] if fault == "cut" else content

    server = make_server("127.0.0.1", 0, app, threaded=True)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
