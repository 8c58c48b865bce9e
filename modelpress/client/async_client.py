"""The service over HTTP, for programs that do other things meanwhile. See `Client` for what each method promises."""

import asyncio
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from modelpress.client import calls
from modelpress.client.calls import Call, Wanted
from modelpress.client.client import ANY, FOLLOW_SECONDS, WAIT_SECONDS, Client
from modelpress.client.transport import Answer, connection, parse, send_async
from modelpress.contract.estimate import Estimate
from modelpress.contract.event import EventKind, JobEvent
from modelpress.contract.job import Artifact, Job, JobPage, JobSummary
from modelpress.contract.recipe import Recipe
from modelpress.contract.upload import Upload
from modelpress.contract.webhook import Delivery, EventName, IssuedWebhook, Webhook
from modelpress.contract.worker import Worker


class AsyncClient:
    """A connection to one service. Use it as an asynchronous context manager, or call `close`.

    The arguments are those of `Client`.
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
        self.api_key = api_key
        self.patience_seconds = patience_seconds
        self._http = httpx2.AsyncClient(**connection(self.url, api_key, timeout_seconds))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def submit(self, recipe: Recipe, idempotency_key: str | None = None) -> Job:
        """Post a recipe and return the queued job."""
        return await self._ask(calls.submit(recipe, idempotency_key))

    async def estimate(self, recipe: Recipe) -> Estimate:
        """Return what a job would take and make; nothing is posted."""
        return await self._ask(calls.estimate(recipe))

    async def get(self, job_id: str, *, wait_seconds: int = 0) -> Job:
        """Return the job as it is now; with `wait_seconds`, as it is when it has ended or that time is over."""
        return await self._ask(calls.get(job_id, wait_seconds))

    async def page(self, wanted: Wanted = ANY, *, after: str | None = None, limit: int | None = None) -> JobPage:
        """Return up to `limit` jobs, newest first, beginning behind the cursor `after`."""
        return await self._ask(calls.page(wanted, after, limit))

    async def jobs(self, wanted: Wanted = ANY, *, page_size: int | None = None) -> AsyncIterator[JobSummary]:
        """Yield every job, newest first, asking for a page whenever one is needed."""
        after: str | None = None
        while True:
            page = await self.page(wanted, after=after, limit=page_size)
            for job in page.jobs:
                yield job
            after = page.next
            if after is None:
                return

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and return it; it may still be `cancelling`."""
        return await self._ask(calls.cancel(job_id))

    async def retry(self, job_id: str) -> Job:
        """Post a failed or cancelled job again, and return the new one."""
        return await self._ask(calls.retry(job_id))

    async def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its files."""
        await self._ask(calls.delete(f"/jobs/{job_id}"))

    async def workers(self) -> tuple[Worker, ...]:
        """Return every worker of the service."""
        return (await self._ask(calls.workers())).workers

    async def events(self, job_id: str, *, after: int = 0, kind: EventKind | None = None) -> AsyncIterator[JobEvent]:
        """Yield what has happened to a job so far, oldest first."""
        while True:
            page = await self._ask(calls.events(job_id, after, kind))
            for event in page.events:
                yield event
            if page.next is None:
                return
            after = page.next

    async def follow(self, job_id: str) -> AsyncIterator[JobEvent]:
        """Yield what has happened to a job and what happens, until it ends."""
        after = 0
        while True:
            async for event in self.events(job_id, after=after):
                after = event.id
                yield event
                if event.is_last:
                    return
            await asyncio.sleep(FOLLOW_SECONDS)

    async def wait(self, job_id: str) -> Job:
        """Return the job once it has ended."""
        while not (job := await self.get(job_id, wait_seconds=WAIT_SECONDS)).state.has_ended:
            pass
        return job

    async def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """Return the files of a job's result; none while there is no result."""
        return (await self._ask(calls.artifacts(job_id))).artifacts

    async def download(self, job_id: str, directory: Path) -> tuple[Path, ...]:
        """Download every file of a job's checkpoint in a thread, check its SHA-256, and return the paths."""

        def fetch() -> tuple[Path, ...]:
            with Client(self.url, api_key=self.api_key, patience_seconds=self.patience_seconds) as client:
                return client.download(job_id, directory)

        return await asyncio.to_thread(fetch)

    async def upload(self, path: Path, name: str | None = None) -> Upload:
        """Send a .txt or .jsonl file in a thread, and return it complete."""

        def send() -> Upload:
            with Client(self.url, api_key=self.api_key, patience_seconds=self.patience_seconds) as client:
                return client.upload(path, name)

        return await asyncio.to_thread(send)

    async def get_upload(self, upload_id: str) -> Upload:
        """Return an upload as it is now."""
        return await self._ask(calls.get_upload(upload_id))

    async def uploads(self) -> AsyncIterator[Upload]:
        """Yield every upload of the team, newest first."""
        after: str | None = None
        while True:
            page = await self._ask(calls.uploads(after))
            for upload in page.uploads:
                yield upload
            after = page.next
            if after is None:
                return

    async def delete_upload(self, upload_id: str) -> None:
        """Delete an upload that no unfinished job names."""
        await self._ask(calls.delete(f"/uploads/{upload_id}"))

    async def create_webhook(self, url: str, events: Collection[EventName] | None = None) -> IssuedWebhook:
        """Have events of the team's jobs posted to an address."""
        return await self._ask(calls.create_webhook(url, events))

    async def webhooks(self) -> tuple[Webhook, ...]:
        """Return the webhooks of the team, newest first."""
        return (await self._ask(calls.webhooks())).webhooks

    async def test_webhook(self, webhook_id: str) -> Delivery:
        """Have a test event sent."""
        return await self._ask(calls.test_webhook(webhook_id))

    async def rotate_webhook(self, webhook_id: str) -> IssuedWebhook:
        """Give a webhook another secret."""
        return await self._ask(calls.rotate_webhook(webhook_id))

    async def deliveries(self, webhook_id: str) -> AsyncIterator[Delivery]:
        """Yield what was sent to a webhook, or waits to be, newest first."""
        before: int | None = None
        while True:
            page = await self._ask(calls.deliveries(webhook_id, before))
            for delivery in page.deliveries:
                yield delivery
            before = page.next
            if before is None:
                return

    async def retry_delivery(self, webhook_id: str, delivery_id: int) -> Delivery:
        """Send a delivery again."""
        return await self._ask(calls.retry_delivery(webhook_id, delivery_id))

    async def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook with its log."""
        await self._ask(calls.delete(f"/webhooks/{webhook_id}"))

    async def _ask(self, call: Call[Answer]) -> Answer:
        answer = await send_async(
            lambda: self._http.request(
                call.method, call.path, params=call.params, headers=call.headers, json=call.json
            ),
            patience_seconds=self.patience_seconds if call.may_repeat else 0.0,
        )
        return parse(call.kind, answer)
