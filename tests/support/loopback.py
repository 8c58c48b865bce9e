"""A real HTTP server that answers as the contract says, and breaks off where a test tells it to."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Comparison, Failure, Job, JobSummary, Metrics, Problem, Source, State, Timestamps
from modelpress.contract.recipe import Recipe

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BEFORE = Metrics(
    parameters=134_515_008,
    bytes=269_030_016,
    perplexity={"builtin:python-docs-test": 22.0},
    prefill_tokens_per_second=900.0,
    decode_tokens_per_second=30.0,
    sample="Once",
)
AFTER = BEFORE.model_copy(
    update={"parameters": 102_683_212, "bytes": 205_366_424, "perplexity": {"builtin:python-docs-test": 81.5}}
)


def make_job(state: State, **fields: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": "job_1",
        "attempt": 1,
        "timestamps": Timestamps(queued=MOMENT),
        "recipe": Recipe(model="local:tiny", target_ratio=1.31),
        "source": Source(reference="local:tiny", model_type="llama", parameters=134_515_008),
        "links": {"self": "/jobs/job_1"},
    }
    return Job(state=state, **(defaults | fields))


def succeeded(**fields: Any) -> Job:
    measured = {"progress": 1.0, "achieved_ratio": 1.3104, "metrics": Comparison(before=BEFORE, after=AFTER)}
    return make_job(**({"state": State.SUCCEEDED} | measured | fields))


def running(progress: float, **fields: Any) -> Job:
    return make_job(State.RUNNING, stage="compress", progress=progress, **fields)


def failed() -> Job:
    failure = Failure.of(FailureCode.OUT_OF_MEMORY, "the worker has too little memory", attempt=1)
    return make_job(State.FAILED, error=failure)


def below_gate(**fields: Any) -> Job:
    """One that has failed although it has a result."""
    failure = Failure.of(FailureCode.QUALITY_GATE, "the perplexity is too high", attempt=1)
    links = {"checkpoint": "/jobs/job_1/checkpoint"}
    return succeeded(state=State.FAILED, error=failure, links=links, **fields)


def summary(job: Job) -> JobSummary:
    """Return the job as a list shows it."""
    return JobSummary(
        id=job.id,
        state=job.state,
        progress=job.progress,
        timestamps=job.timestamps,
        model=job.recipe.model,
        target_ratio=job.recipe.target_ratio,
        method=job.recipe.method.name,
        links=job.links,
    )


HAPPENED = tuple(
    {"id": number, "at": MOMENT.isoformat(), "attempt": 1, "kind": kind, "data": data}
    for number, (kind, data) in enumerate(
        (
            ("state", {"state": "queued"}),
            ("metric", {"step": 1, "name": "loss", "value": 0.5}),
            ("log", {"line": "a word"}),
            ("state", {"state": "succeeded"}),
        ),
        1,
    )
)


@dataclass
class Script:
    """The answers of the server. Each GET of the job takes the next of `states`; the last one stays.

    Attributes:
        files: the artifacts by name.
        broken_after: for each coming download, after how many bytes the connection is cut.
        refusals: answers to give before any other, one a request.
        page: a web page to answer with instead of everything else.
        requests: what has been asked, as (method, path, Range header).
    """

    states: list[Job] = field(default_factory=lambda: [succeeded()])
    files: dict[str, bytes] = field(default_factory=dict)
    broken_after: list[int] = field(default_factory=list)
    refusals: list[Problem] = field(default_factory=list)
    page: bytes | None = None
    digests: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    posted: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    preferences: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    retry_after: int | None = None
    events: list[dict[str, Any]] = field(default_factory=lambda: list(HAPPENED))
    url: str = ""

    def next_state(self) -> Job:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def asked(self, method: str) -> list[str]:
        return [path for asked, path, _ in self.requests if asked == method]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def log_message(self, format: str, *arguments: object) -> None:
        """Test output is no access log."""

    def do_GET(self) -> None:
        self.script.preferences += [value for value in [self.headers.get("Prefer")] if value]
        self.script.authorizations += [value for value in [self.headers.get("Authorization")] if value]
        if self.refused():
            return
        if self.path.startswith("/jobs/job_1/artifacts/"):
            self.send_file(self.path.removeprefix("/jobs/job_1/artifacts/"))
        elif self.path == "/jobs/job_1/artifacts":
            self.send_json({"artifacts": [self.artifact(name) for name in self.script.files]})
        elif self.path.startswith("/jobs/job_1/events"):
            after = int(self.path.partition("after=")[2].partition("&")[0] or 0)
            events = [event for event in self.script.events if event["id"] > after]
            self.send_json({"events": events, "next": events[-1]["id"] if events else None})
        elif self.path == "/jobs/job_1":
            self.send_json(self.script.next_state().model_dump(mode="json"))
        elif re.match(r"/jobs(\?|$)", self.path):
            jobs = [summary(job).model_dump(mode="json") for job in self.script.states]
            self.send_json({"jobs": jobs, "next": None})
        elif self.path == "/livez":
            self.send_json({"status": "alive"})
        else:
            self.send_problem(Problem(type="about:blank", title="There is no such job", status=404, detail=self.path))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.script.keys.append(self.headers.get("Idempotency-Key"))
        if self.refused():
            return
        if self.path == "/jobs":
            self.script.posted.append(json.loads(body))
            self.send_json(make_job(State.QUEUED, attempt=0).model_dump(mode="json"), status=202)
        else:
            self.script.states = [make_job(State.CANCELLED)]
            self.send_json(make_job(State.CANCELLED).model_dump(mode="json"))

    def refused(self) -> bool:
        self.script.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.script.page is not None:
            self.send_content(self.script.page, 200, "text/html")
            return True
        if self.script.refusals:
            self.send_problem(self.script.refusals.pop(0))
            return True
        return False

    def artifact(self, name: str) -> dict[str, Any]:
        content = self.script.files[name]
        return {
            "name": name,
            "bytes": len(content),
            "sha256": self.script.digests.get(name, sha256(content).hexdigest()),
            "media_type": "application/octet-stream",
            "href": f"/jobs/job_1/artifacts/{name}",
        }

    def send_file(self, name: str) -> None:
        content = self.script.files[name]
        tag = f'"sha256-{sha256(content).hexdigest()}"'
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and self.headers.get("If-Range") == tag:
            start = int(wanted[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.script.broken_after:
            self.wfile.write(content[start : start + self.script.broken_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def send_problem(self, problem: Problem) -> None:
        self.send_json(problem.model_dump(mode="json"), problem.status, "application/problem+json")

    def send_json(self, body: object, status: int = 200, media_type: str = "application/json") -> None:
        self.send_content(json.dumps(body).encode(), status, media_type)

    def send_content(self, content: bytes, status: int, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        if self.script.retry_after is not None and status >= 400:
            self.send_header("Retry-After", str(self.script.retry_after))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """Answers on a free port of the loopback interface, at `script.url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ScriptedHandler", (Handler,), {"script": script}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
