"""The service over HTTP, for programs that do other things meanwhile. See `Client` for what each method promises."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from modelpress.client import calls
from modelpress.client.calls import Call, Wanted
from modelpress.client.client import ANY, WAIT_SECONDS, Client
from modelpress.client.transport import Answer, connection, parse, refusal, send_async
from modelpress.contract.estimate import Estimate
from modelpress.contract.event import EventKind, JobEvent
from modelpress.contract.job import Artifact, Job, JobPage, JobSummary
from modelpress.contract.recipe import Recipe
from modelpress.contract.upload import Upload
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

    async def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its files."""
        answer = await send_async(lambda: self._http.delete(f"/jobs/{job_id}"), patience_seconds=self.patience_seconds)
        if not answer.is_success:
            raise refusal(answer)

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

    async def _ask(self, call: Call[Answer]) -> Answer:
        answer = await send_async(
            lambda: self._http.request(
                call.method, call.path, params=call.params, headers=call.headers, json=call.json
            ),
            patience_seconds=self.patience_seconds,
        )
        return parse(call.kind, answer)
