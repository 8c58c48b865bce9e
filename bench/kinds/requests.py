"""Requests a second of the service's API, in turns with a bare FastAPI route and a plain copy over loopback.

The load comes from this process, over raw sockets: a client library would be slower than what is measured. The worker
is idle: the jobs ask for a device that nobody has.
"""

import asyncio
import json
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import psutil
from pydantic import Field

from app.db import make_engine, make_sessions
from app.jobs import posting, store
from app.keys.models import DEFAULT_TEAM
from app.keys.setup import issue_key
from app.lifeline import Lifeline
from app.serve import STOP_SECONDS, Service, address_of, listen, running_service, start
from app.settings import Settings
from app.storage.registry import open_storage
from bench.experiment import Case, Experiment, Place, Row, Table
from bench.formatting import optional
from demo.models import bundled
from modelpress.client import AsyncClient, Client
from modelpress.contract.access import KeyRequest
from modelpress.contract.job import Comparison, Metrics, Source
from modelpress.contract.recipe import Recipe

MODEL = "local:model.gguf"
NOBODYS = "nobodys"
BODY = {"model": MODEL, "target_ratio": 1.3, "method": "low_rank", "precision": 16, "device": NOBODYS}
READ_BYTES = 1 << 18


class Load(Case):
    """One kind of request, and the number of connections that send it at the same time."""

    asked: Literal["get", "post", "download", "wait"]
    connections: int = Field(1, ge=1)
    keyed: bool = Field(False, description="whether the API that is asked asks for a key")


class Rate(Row):
    """Row of a load: answers a second, and those of the bare route in the same run."""

    rate: float = Field(description="answers a second; of a download, bytes a second")
    compared: float | None = Field(description="the same of the bare route, or of the copy over loopback, in turns")
    p50_ms: float | None = None
    p99_ms: float | None = None
    compared_p50_ms: float | None = Field(None, description="of the bare route")
    grown_bytes: int | None = Field(None, description="by how much the API's process grew meanwhile")


class Requests(Experiment[Load, Rate]):
    """The API under load."""

    row: ClassVar[type[Row]] = Rate

    kind: Literal["requests"]
    rounds: int = 3
    seconds: float = 3.0
    download_bytes: int = 1 << 30

    def measure(self, cases: Sequence[Load], place: Place) -> Iterator[Rate]:
        """Measure one case after another on one service."""
        with ExitStack() as stack:
            service, settings = stack.enter_context(self._service(place))
            bare = stack.enter_context(bare_route())
            closed, key = stack.enter_context(closed_api(service, place.scratch / "logs" / "closed"))
            with Client(service.address) as client:
                job = client.submit(Recipe.model_validate(BODY)).id
            for case in cases:
                address, token = (closed, key) if case.keyed else (service.address, None)
                match case.asked:
                    case "wait":
                        yield Rate(case=case.name, rate=asyncio.run(self._waiting(service, job, case)), compared=None)
                    case "download":
                        yield self._download(service, settings, case, place)
                    case "get":
                        yield self._in_turns(case, bare, address, request("GET", f"/jobs/{job}", key=token))
                    case "post":
                        yield self._in_turns(case, bare, address, request("POST", "/jobs", json.dumps(BODY), token))

    @contextmanager
    def _service(self, place: Place) -> Iterator[tuple[Service, Settings]]:
        original = bundled().path
        assert original is not None, "the model that comes along is a file"
        models = place.scratch / "models"
        models.mkdir()
        shutil.copy(original, models / "model.gguf")
        settings = Settings(
            data_dir=place.scratch / "service",
            database_url=None,
            redis_url=None,
            port=0,
            model_roots=(models,),
            hub_enabled=False,
            max_queued=1_000_000,
            requests_per_minute=1_000_000_000,
        )
        with running_service(settings, log_dir=place.scratch / "logs") as service:
            yield service, settings

    def _in_turns(self, case: Load, bare: str, address: str, sent: bytes) -> Rate:
        plain, ours, bare_times, times = [], [], list[float](), list[float]()
        for _ in range(self.rounds):
            answered = asyncio.run(load(bare, request("GET", "/"), case.connections, self.seconds))
            plain.append(len(answered))
            bare_times += answered
            answered = asyncio.run(load(address, sent, case.connections, self.seconds))
            ours.append(len(answered))
            times += answered
        cuts = statistics.quantiles(times, n=100)
        return Rate(
            case=case.name,
            rate=statistics.median(ours) / self.seconds,
            compared=statistics.median(plain) / self.seconds,
            p50_ms=1e3 * cuts[49],
            p99_ms=1e3 * cuts[98],
            compared_p50_ms=1e3 * statistics.median(bare_times),
        )

    def _download(self, service: Service, settings: Settings, case: Load, place: Place) -> Rate:
        job, stored = finished_job(service, settings, place.scratch, self.download_bytes)
        api = next(psutil.Process(child.process.pid) for child in service.children if child.name == "api")
        copies, downloads, before = [], [], api.memory_info().rss
        for _ in range(self.rounds):
            copies.append(self.download_bytes / copied(stored))
            seconds = received(service.address, f"/jobs/{job}/artifacts/model.safetensors")
            downloads.append(self.download_bytes / seconds)
        return Rate(
            case=case.name,
            rate=statistics.median(downloads),
            compared=statistics.median(copies),
            grown_bytes=api.memory_info().rss - before,
        )

    async def _waiting(self, service: Service, job: str, case: Load) -> float:
        """Return how many requests a second clients make that wait for a job, over ten times the usual time."""
        made = 0

        async def count(_: object) -> None:
            nonlocal made
            made += 1

        clients = [AsyncClient(service.address) for _ in range(case.connections)]
        for client in clients:
            client._http.event_hooks["request"].append(count)
        waiting = [asyncio.create_task(client.wait(job)) for client in clients]
        await asyncio.sleep(10 * self.seconds)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for client in clients:
            await client.close()
        return made / (10 * self.seconds)

    def table(self, rows: Sequence[Rate]) -> Table:
        """Return a row for each case."""
        header = ("load", "a second", "bare", "share", "p50, ms", "bare", "p99, ms", "process grew by, MB")
        return Table(header, tuple(map(cells, rows)))


def cells(row: Rate) -> tuple[str, ...]:
    """Return the texts of a row; large numbers are bytes, in MB."""
    scale, unit = (1e6, " MB") if row.grown_bytes is not None else (1, "")
    share = None if row.compared is None else row.rate / row.compared
    return (
        row.case,
        f"{row.rate / scale:.1f}{unit}",
        "" if row.compared is None else f"{row.compared / scale:.1f}{unit}",
        optional(share, ".2f"),
        optional(row.p50_ms, ".2f"),
        optional(row.compared_p50_ms, ".2f"),
        optional(row.p99_ms, ".1f"),
        "" if row.grown_bytes is None else f"{row.grown_bytes / 1e6:.1f}",
    )


def request(method: str, path: str, body: str = "", key: str | None = None) -> bytes:
    """Return a request as it is sent."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    head += f"\r\nContent-Length: {len(body)}"
    if key is not None:
        head += f"\r\nAuthorization: Bearer {key}"
    return f"{head}\r\n\r\n{body}".encode()


@contextmanager
def closed_api(service: Service, log_dir: Path) -> Iterator[tuple[str, str]]:
    """Run one more API of the service that asks for keys, and yield its address and a key."""
    assert service.settings is not None
    engine = make_engine(service.settings.database_url)
    key = issue_key(make_sessions(engine), DEFAULT_TEAM, KeyRequest(name="bench")).token
    engine.dispose()
    lifeline = Lifeline()
    with listen("127.0.0.1", 0) as listener:
        child = start("api", service.settings, lifeline, listener.fileno(), log_dir)
        address = address_of(listener)
    try:
        with Client(address) as client:
            while client.readiness():
                service.check()
        yield address, key
    finally:
        child.stop(STOP_SECONDS)
        lifeline.close()


async def load(address: str, sent: bytes, connections: int, seconds: float) -> list[float]:
    """Return the seconds of each answer that came within the time, over so many connections at once."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    deadline = time.perf_counter() + seconds
    times: list[float] = []

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while (started := time.perf_counter()) < deadline:
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split(b" ", 2)[1][:1] == b"2", head
            length = head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
            await reader.readexactly(int(length))
            times.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(ask() for _ in range(connections)))
    return times


@contextmanager
def bare_route() -> Iterator[str]:
    """Run a FastAPI application that answers one route with a small object, and yield its address."""
    program = (
        "import socket, sys, uvicorn; from fastapi import FastAPI; app = FastAPI();"
        "app.get('/')(lambda: {'hello': 'world'}); s = socket.create_server(('127.0.0.1', 0));"
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); print(s.getsockname()[1], flush=True);"
        "uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[s])"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.communicate()


def finished_job(service: Service, settings: Settings, scratch: Path, size: int) -> tuple[str, Path]:
    """Make a finished job with one file of so many bytes; return its id, and a file of that size."""
    package = scratch / "package"
    package.mkdir()
    with (package / "model.safetensors").open("wb") as file:
        for _ in range(size >> 20):
            file.write(b"\x5a" * (1 << 20))
    copy = scratch / "copy"
    copy.write_bytes(b"")
    with copy.open("ab") as file:
        for _ in range(size >> 20):
            file.write(b"\x5a" * (1 << 20))
    assert service.settings is not None
    engine = make_engine(service.settings.database_url)
    files = open_storage(settings.artifacts_url).publish("job_bench", 1, package)
    recipe = Recipe.model_validate(BODY)
    source = Source(reference=MODEL, model_type="llama", parameters=1)
    figures = Metrics(
        parameters=1, bytes=2, perplexity={}, prefill_tokens_per_second=None, decode_tokens_per_second=None, sample=None
    )
    with make_sessions(engine).begin() as session:
        posting.submit(session, posting.NewJob("job_bench", recipe, source, 1))
        store.claim(session, "job_bench", "bench", 60.0)
        store.finish(session, "job_bench", 1, 1.3, Comparison(before=figures, after=figures), files)
    engine.dispose()
    return "job_bench", copy


def copied(file: Path) -> float:
    """Return the seconds in which a file goes over a loopback connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            connection, _ = listener.accept()
            with connection, file.open("rb") as source:
                connection.sendfile(source)

        thread = threading.Thread(target=send)
        thread.start()
        with socket.create_connection(listener.getsockname()) as connection:
            started = time.perf_counter()
            while connection.recv(READ_BYTES):
                pass
            seconds = time.perf_counter() - started
        thread.join()
    return seconds


def received(address: str, path: str) -> float:
    """Return the seconds in which a file is downloaded."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        started = time.perf_counter()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(READ_BYTES).split(b" ", 2)[1] == b"200"
        while connection.recv(READ_BYTES):
            pass
        return time.perf_counter() - started
