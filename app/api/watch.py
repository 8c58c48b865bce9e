"""Tells whoever listens to a job that something has happened to it, without a database connection for each of them."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from anyio import to_thread

from app.db import Sessions
from app.jobs import events

LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


class Watch:
    """Looks again and again for new events of the jobs that somebody listens to: one query for all of them."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.listeners: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.seen: dict[str, int] = {}

    @contextmanager
    def on(self, job_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever something has happened to the job."""
        news = asyncio.Event()
        self.listeners[job_id].add(news)
        self.seen.pop(job_id, None)  # the next look tells everybody: something may have happened in between
        try:
            yield news
        finally:
            self.listeners[job_id].discard(news)
            if not self.listeners[job_id]:
                del self.listeners[job_id]
                self.seen.pop(job_id, None)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.listeners:
                await self.look()

    async def look(self) -> None:
        """Wake the listeners of every job with new events."""
        try:
            newest = await to_thread.run_sync(self.newest, list(self.listeners))
        except Exception as error:  # noqa: BLE001 - all streams hang on this loop; it looks again
            log.warning("events_not_seen", extra={"reason": type(error).__name__})
            return
        for job_id, event_id in newest.items():
            if self.seen.get(job_id) != event_id:
                self.seen[job_id] = event_id
                for news in self.listeners.get(job_id, ()):
                    news.set()

    def newest(self, job_ids: list[str]) -> dict[str, int]:
        """Return the id of the newest event of each job."""
        with self.sessions() as session:
            return events.newest(session, job_ids)
