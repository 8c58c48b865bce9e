"""The service over HTTP, in terms of the contract.

Reading and cancelling are safe to repeat, so they are retried while the service restarts or the network fails.
Submitting is repeated only where no connection came about: a job is never posted twice.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from app.client.download import ByteReport, download_artifact
from app.client.transport import Answer, parse, refusal, send
from app.contract.job import Artifact, ArtifactList, Job, JobPage, State
from app.contract.recipe import Recipe


class Client:
    """A connection to one service. Use it as a context manager, or call `close`.

    `patience_seconds` is for how long a failing request is repeated before `ServiceUnreachable` is raised.
    Every method raises `ProblemError` where the service refuses, and `UnexpectedAnswer` where it is not ours.
    """

    def __init__(self, url: str, *, patience_seconds: float = 30.0, timeout_seconds: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.patience_seconds = patience_seconds
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(timeout_seconds, connect=5.0),
            follow_redirects=True,
            headers={"User-Agent": "modelpress"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, recipe: Recipe) -> Job:
        body = recipe.model_dump(mode="json", exclude_unset=True)
        return self._ask(Job, "POST", "/jobs", json=body, idempotent=False)

    def get(self, job_id: str) -> Job:
        return self._ask(Job, "GET", f"/jobs/{job_id}")

    def page(self, *, after: str | None = None, limit: int | None = None, state: State | None = None) -> JobPage:
        """Jobs, newest first."""
        asked = {"after": after, "limit": limit, "state": state and state.value}
        return self._ask(
            JobPage, "GET", "/jobs", params={name: value for name, value in asked.items() if value is not None}
        )

    def cancel(self, job_id: str) -> Job:
        return self._ask(Job, "POST", f"/jobs/{job_id}/cancel")

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        return self._ask(ArtifactList, "GET", f"/jobs/{job_id}/artifacts").artifacts

    def download(self, job_id: str, directory: Path, report: ByteReport | None = None) -> tuple[Path, ...]:
        """Every file of a job's checkpoint, each checked against its SHA-256.

        What a broken-off download left in `directory` is taken up again; files that are whole are kept.
        `report(name, bytes)` hears of the size that each file has reached.
        """
        directory.mkdir(parents=True, exist_ok=True)
        return tuple(
            download_artifact(self._http, artifact, directory, patience_seconds=self.patience_seconds, report=report)
            for artifact in self.artifacts(job_id)
        )

    def wait(self, job_id: str, *, poll_seconds: float = 1.0) -> Iterator[Job]:
        """The job as it is at each look, up to and including its last state."""
        while not (job := self.get(job_id)).state.has_ended:
            yield job
            time.sleep(poll_seconds)
        yield job

    def is_alive(self) -> bool:
        """Whether a service answers at this address, asked once."""
        try:
            return self._http.get("/livez", timeout=2.0).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    def readiness(self) -> str | None:
        """None once the service takes jobs; what it lacks until then, asked once."""
        try:
            answer = self._http.get("/readyz", timeout=2.0)
        except httpx2.HTTPError as error:
            return str(error) or type(error).__name__
        return None if answer.is_success else str(refusal(answer))

    def _ask(self, kind: type[Answer], method: str, path: str, *, idempotent: bool = True, **options: Any) -> Answer:
        answer = send(
            lambda: self._http.request(method, path, **options),
            idempotent=idempotent,
            patience_seconds=self.patience_seconds,
        )
        return parse(kind, answer)
