"""The service over HTTP, in terms of the contract.

Reading and cancelling are safe to repeat, so they are retried while the service restarts or the network fails.
Submitting is, too, since it sends an Idempotency-Key: a job is never posted twice.
"""

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from modelpress.client import calls
from modelpress.client.calls import Call, Wanted
from modelpress.client.download import ByteReport, download_artifact
from modelpress.client.transport import Answer, connection, parse, refusal, send
from modelpress.client.upload import announcement, send_pieces
from modelpress.contract.estimate import Estimate
from modelpress.contract.event import EventKind, JobEvent
from modelpress.contract.job import Artifact, Job, JobPage, JobSummary
from modelpress.contract.recipe import Recipe
from modelpress.contract.upload import Upload, UploadRequest
from modelpress.contract.webhook import Delivery, EventName, IssuedWebhook, Webhook
from modelpress.contract.worker import Worker

WAIT_SECONDS = 20
"""For how long the service is asked to hold back its answer while a job has not ended."""
FOLLOW_SECONDS = 1.0
ANY = Wanted()


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
        self._http = httpx2.Client(**connection(self.url, api_key, timeout_seconds))

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
        return self._ask(calls.submit(recipe, idempotency_key))

    def estimate(self, recipe: Recipe) -> Estimate:
        """Return what a job would take and make; nothing is posted."""
        return self._ask(calls.estimate(recipe))

    def get(self, job_id: str, *, wait_seconds: int = 0) -> Job:
        """Return the job as it is now; with `wait_seconds`, as it is when it has ended or that time is over."""
        return self._ask(calls.get(job_id, wait_seconds))

    def page(self, wanted: Wanted = ANY, *, after: str | None = None, limit: int | None = None) -> JobPage:
        """Return up to `limit` jobs, newest first, beginning behind the cursor `after`."""
        return self._ask(calls.page(wanted, after, limit))

    def jobs(self, wanted: Wanted = ANY, *, page_size: int | None = None) -> Iterator[JobSummary]:
        """Yield every job, newest first, asking for a page whenever one is needed."""
        after: str | None = None
        while True:
            page = self.page(wanted, after=after, limit=page_size)
            yield from page.jobs
            after = page.next
            if after is None:
                return

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and return it; it may still be `cancelling`."""
        return self._ask(calls.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """Post a failed or cancelled job again, and return the new one, which goes on with what is left of its work.

        Never repeated where no answer came: a second one would be another job.
        """
        return self._ask(calls.retry(job_id))

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its files."""
        self._ask(calls.delete(f"/jobs/{job_id}"))

    def workers(self) -> tuple[Worker, ...]:
        """Return every worker of the service."""
        return self._ask(calls.workers()).workers

    def events(self, job_id: str, *, after: int = 0, kind: EventKind | None = None) -> Iterator[JobEvent]:
        """Yield what has happened to a job so far, oldest first."""
        while True:
            page = self._ask(calls.events(job_id, after, kind))
            yield from page.events
            if page.next is None:
                return
            after = page.next

    def follow(self, job_id: str) -> Iterator[JobEvent]:
        """Yield what has happened to a job and what happens, until it ends."""
        after = 0
        while True:
            for event in self.events(job_id, after=after):
                after = event.id
                yield event
                if event.is_last:
                    return
            time.sleep(FOLLOW_SECONDS)

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """Return the files of a job's result; none while there is no result."""
        return self._ask(calls.artifacts(job_id)).artifacts

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
                calls.artifact_path(job_id, artifact.name),
                artifact,
                directory,
                patience_seconds=self.patience_seconds,
                report=report,
            )
            for artifact in self.artifacts(job_id)
        )

    def upload(self, path: Path, name: str | None = None) -> Upload:
        """Send a .txt or .jsonl file, and return it complete; a recipe names it as a dataset by its `id`.

        What has arrived of it before is not sent again, be the connection or this program that broke off.
        """
        begun = self.begin_upload(announcement(path, name))
        return send_pieces(self._http, begun, path, self.patience_seconds)

    def begin_upload(self, request: UploadRequest) -> Upload:
        """Announce a file, and return what has arrived of it."""
        return self._ask(calls.begin_upload(request))

    def get_upload(self, upload_id: str) -> Upload:
        """Return an upload as it is now."""
        return self._ask(calls.get_upload(upload_id))

    def uploads(self) -> Iterator[Upload]:
        """Yield every upload of the team, newest first."""
        after: str | None = None
        while True:
            page = self._ask(calls.uploads(after))
            yield from page.uploads
            after = page.next
            if after is None:
                return

    def delete_upload(self, upload_id: str) -> None:
        """Delete an upload that no unfinished job names."""
        self._ask(calls.delete(f"/uploads/{upload_id}"))

    def create_webhook(self, url: str, events: Collection[EventName] | None = None) -> IssuedWebhook:
        """Have events of the team's jobs posted to an address: those named, or else how jobs end.

        The `secret` of the answer is shown this once. Never repeated where no answer came.
        """
        return self._ask(calls.create_webhook(url, events))

    def webhooks(self) -> tuple[Webhook, ...]:
        """Return the webhooks of the team, newest first."""
        return self._ask(calls.webhooks()).webhooks

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Have a test event sent; what became of it stands among the deliveries."""
        return self._ask(calls.test_webhook(webhook_id))

    def rotate_webhook(self, webhook_id: str) -> IssuedWebhook:
        """Give a webhook another secret, which is shown this once. For a day, the old one is used to sign, too."""
        return self._ask(calls.rotate_webhook(webhook_id))

    def deliveries(self, webhook_id: str) -> Iterator[Delivery]:
        """Yield what was sent to a webhook, or waits to be, newest first."""
        before: int | None = None
        while True:
            page = self._ask(calls.deliveries(webhook_id, before))
            yield from page.deliveries
            before = page.next
            if before is None:
                return

    def retry_delivery(self, webhook_id: str, delivery_id: int) -> Delivery:
        """Send a delivery again, whatever became of it."""
        return self._ask(calls.retry_delivery(webhook_id, delivery_id))

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook with its log."""
        self._ask(calls.delete(f"/webhooks/{webhook_id}"))

    def wait(self, job_id: str, *, poll_seconds: float | None = None) -> Iterator[Job]:
        """Yield the job at each look, up to and including its final state.

        Without `poll_seconds`, the service is asked to answer when the job has ended, or after a while: few requests,
        and the end is known at once. With it, the job is looked at in this rhythm, for a display of its progress; what
        has not changed is not sent again.
        """
        job, etag = None, None
        while job is None or not job.state.has_ended:
            if job is not None:
                time.sleep(poll_seconds or 0)
            answer = self._send(calls.get(job_id, WAIT_SECONDS if poll_seconds is None else 0, etag))
            if job is None or answer.status_code != httpx2.codes.NOT_MODIFIED:
                job, etag = parse(Job, answer), answer.headers.get("etag")
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

    def _ask(self, call: Call[Answer]) -> Answer:
        return parse(call.kind, self._send(call))

    def _send(self, call: Call[Answer]) -> httpx2.Response:
        return send(
            lambda: self._http.request(
                call.method, call.path, params=call.params, headers=call.headers, json=call.json
            ),
            patience_seconds=self.patience_seconds if call.may_repeat else 0.0,
        )
