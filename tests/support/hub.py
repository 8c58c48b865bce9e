"""A small model hub on loopback that speaks the protocol huggingface_hub's client uses, with faults on request.

As on the real one, large files are answered with a redirect to another origin, and a repository is seen at a commit.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".bin")
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
CHUNK = 64 * 1024


@dataclass
class HubRepository:
    files: dict[str, bytes]
    commit: str
    refs: dict[str, str]
    gated: bool = False
    """Its listing is public, its files need the token."""
    private: bool = False
    """Not even its existence is public."""
    served: dict[str, bytes] = field(default_factory=dict)
    """File name -> bytes sent in place of the listed ones."""
    sizes: dict[str, int] = field(default_factory=dict)
    """File name -> size listed in place of the true one."""


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    authorization: str | None
    range: str | None
    redirected: bool


class LoopbackHub:
    """`add` repositories, then point a client at `endpoint`. Faults are attributes; they may be changed at any time."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], HubRepository] = {}
        self.requests: list[Seen] = []
        self.token: str | None = None
        """The token that gated and private repositories ask for."""
        self.status: int | None = None
        """Answer everything with this status."""
        self.delay_seconds = 0.0
        self.ignore_ranges = False
        self.cut_after: int | None = None
        """End one answer after so many bytes of a large file, once."""
        self.released = threading.Event()
        """While not set, large files are held back after their first chunk."""
        self.released.set()
        self.held = threading.Event()
        """Set as soon as an answer is being held back."""
        self.front = Server(self)
        self.storage = Server(self)

    @property
    def endpoint(self) -> str:
        return self.front.url

    def add(self, name: str, files: dict[str, bytes], kind: str = "models", branch: str = "main") -> HubRepository:
        """A repository whose branch is at the commit of these files."""
        digest = hashlib.sha1(usedforsecurity=False)
        for file, content in sorted(files.items()):
            digest.update(file.encode() + b"\0" + content)
        commit = digest.hexdigest()
        repository = HubRepository(dict(files), commit, {branch: commit, "main": commit, commit: commit})
        self.repositories[kind, name] = repository
        return repository

    def close(self) -> None:
        self.released.set()
        for server in (self.front, self.storage):
            server.close()


class Server:
    def __init__(self, hub: LoopbackHub) -> None:
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = unquote(urlsplit(self.path).path)
        from_storage = self.server is self.hub.storage.http
        self.hub.requests.append(
            Seen(self.command, url, self.headers.get("Authorization"), self.headers.get("Range"), from_storage)
        )
        time.sleep(self.hub.delay_seconds)
        if self.hub.status is not None:
            self.answer(self.hub.status, b"{}")
        elif listing := API.fullmatch(url):
            self.list_repository(listing["kind"], listing["name"], listing["revision"])
        elif file := RESOLVE.fullmatch(url):
            kind = "datasets" if file["kind"] else "models"
            self.send_file(kind, file["name"], file["revision"], file["file"], from_storage)
        else:
            self.answer(404, b"{}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def find(self, kind: str, name: str, revision: str | None) -> HubRepository | None:
        repository = self.hub.repositories.get((kind, name))
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository is None or (repository.private and not allowed):
            self.answer(401 if repository is None else 404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        if (revision or "main") not in repository.refs:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def list_repository(self, kind: str, name: str, revision: str | None) -> None:
        if (repository := self.find(kind, name, revision)) is None:
            return
        siblings = [
            listed(file, content, repository.sizes.get(file, len(content)))
            for file, content in repository.files.items()
        ]
        body = {"id": name, "sha": repository.commit, "siblings": siblings, "gated": repository.gated, "tags": []}
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send_file(self, kind: str, name: str, revision: str, file: str, from_storage: bool) -> None:
        if from_storage:
            stored = self.hub.repositories[kind, name]
            return self.send_content(stored.served.get(file, stored.files[file]), file)
        if (repository := self.find(kind, name, revision)) is None:
            return None
        if repository.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
        if file not in repository.files:
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if file.endswith(LARGE):
            return self.answer(302, b"", {"Location": f"{self.hub.storage.url}{self.path}"})
        return self.send_content(repository.served.get(file, repository.files[file]), file)

    def send_content(self, content: bytes, file: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, headers = 200, {"Accept-Ranges": "bytes"}
        if asked and not self.hub.ignore_ranges:
            start, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
            if start >= len(content):
                return self.answer(416, b"")
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{len(content)}"
            content = content[start:end]
        if not file.endswith(LARGE):
            return self.answer(status, content, headers)
        return self.send_slowly(status, content, headers)

    def send_slowly(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.start(status, len(content), headers)
        cut, self.hub.cut_after = self.hub.cut_after, None
        self.wfile.write(content[: CHUNK if cut is None else cut])
        if cut is not None:
            self.close_connection = True
            return
        if not self.hub.released.is_set():
            self.wfile.flush()
            self.hub.held.set()
            self.hub.released.wait()
        self.wfile.write(content[CHUNK:])

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.start(status, len(content), headers or {})
        if self.command != "HEAD":
            self.wfile.write(content)

    def start(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """The requests are in `hub.requests`."""


def listed(name: str, content: bytes, size: int) -> dict[str, Any]:
    """A file as the hub lists it: a SHA-256 for what lies in large file storage, Git's id for the rest."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": blob}
    if name.endswith(LARGE):
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
    return entry


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    try:
        yield hub
    finally:
        hub.close()
