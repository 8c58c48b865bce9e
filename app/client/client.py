"""The service over HTTP, in terms of the contract.

Reading and cancelling are safe to repeat, so they are retried while the service restarts or the network fails.
Submitting is, too, since it sends an Idempotency-Key: a job is never posted twice.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx2

from app.client.download import ByteReport, download_artifact
from app.client.transport import Answer, parse, refusal, send
from app.contract.job import Artifact, ArtifactList, Job, JobPage, State
from app.contract.recipe import Recipe

KEY_VARIABLE = "MODELPRESS_API_KEY"


def authorization(api_key: str | None) -> dict[str, str]:
    """Return the header that shows a key, if there is one."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


class Client:
    """A connection to one service. Use it as a context manager, or call `close`.

    Args:
        url: address of the service.
        api_key: a key of the service; None: that of MODELPRESS_API_KEY, if it is set.
        patience_seconds: how long a failing request is retried before ServiceUnreachable is raised.
        timeout_seconds: how long one request waits for data.

    Every method that sends a request raises ServiceUnreachable, ProblemError if the service refuses, and
    UnexpectedAnswer if something else than Modelpress answers.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        patience_seconds: float = 30.0,
        timeout_seconds: float = 30.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience_seconds = patience_seconds
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(timeout_seconds, connect=5.0),
            follow_redirects=True,
            headers={"User-Agent": "modelpress"} | authorization(api_key or os.environ.get(KEY_VARIABLE)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def submit(self, recipe: Recipe, idempotency_key: str | None = None) -> Job:
        """Post a recipe and return the queued job.

        A key that was sent before returns the job that it was sent for; without one, each call makes a job.
        """
        body = recipe.model_dump(mode="json", exclude_unset=True)
        headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
        return self._ask(Job, "POST", "/jobs", json=body, headers=headers)

    def get(self, job_id: str) -> Job:
        """Return the job as it is now."""
        return self._ask(Job, "GET", f"/jobs/{job_id}")

    def page(self, *, after: str | None = None, limit: int | None = None, state: State | None = None) -> JobPage:
        """Return up to `limit` jobs, newest first, beginning behind the cursor `after`."""
        asked = {"after": after, "limit": limit, "state": state and state.value}
        return self._ask(
            JobPage, "GET", "/jobs", params={name: value for name, value in asked.items() if value is not None}
        )

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and return it; it may still be `cancelling`."""
        return self._ask(Job, "POST", f"/jobs/{job_id}/cancel")

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """Return the files of a job's result; none while there is no result."""
        return self._ask(ArtifactList, "GET", f"/jobs/{job_id}/artifacts").artifacts

    def download(self, job_id: str, directory: Path, report: ByteReport | None = None) -> tuple[Path, ...]:
        """Download every file of a job's checkpoint, check its SHA-256, and return the paths.

        Complete files in `directory` are kept, and interrupted downloads are resumed. `report(name, bytes)` is called
        with the size that each file has reached.

        Raises:
            DigestMismatch: a file arrived with another SHA-256.
        """
        directory.mkdir(parents=True, exist_ok=True)
        return tuple(
            download_artifact(
                self._http,
                f"/jobs/{job_id}/artifacts/{quote(artifact.name)}",
                artifact,
                directory,
                patience_seconds=self.patience_seconds,
                report=report,
            )
            for artifact in self.artifacts(job_id)
        )

    def wait(self, job_id: str, *, poll_seconds: float = 1.0) -> Iterator[Job]:
        """Yield the job at each poll, up to and including its final state."""
        while not (job := self.get(job_id)).state.has_ended:
            yield job
            time.sleep(poll_seconds)
        yield job

    def is_alive(self) -> bool:
        """Return whether a service answers at this address; never retries."""
        try:
            return self._http.get("/livez", timeout=2.0).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    def readiness(self) -> str | None:
        """Return None if the service accepts jobs, otherwise what it lacks; never retries."""
        try:
            answer = self._http.get("/readyz", timeout=2.0)
        except httpx2.HTTPError as error:
            return str(error) or type(error).__name__
        return None if answer.is_success else str(refusal(answer))

    def _ask(self, kind: type[Answer], method: str, path: str, **options: Any) -> Answer:
        answer = send(
            lambda: self._http.request(method, path, **options),
            patience_seconds=self.patience_seconds,
        )
        return parse(kind, answer)
