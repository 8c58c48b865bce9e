"""A glance at a job in the event loop, which is all that most requests need."""

import asyncio
from contextlib import suppress
from typing import Any

from app.errors import JobNotFound
from app.jobs.turns import GLANCE, Glance, as_glance
from app.quick import QuickReader, prepared

STATEMENT = prepared(GLANCE)


class Glances:
    """Glances at the jobs of all teams. Who asks for a job while it is looked at shares the next look with others."""

    def __init__(self, reader: QuickReader) -> None:
        self.reader = reader
        self.looking: dict[str, asyncio.Task[Any]] = {}
        self.next: dict[str, asyncio.Task[Any]] = {}

    async def at(self, job_id: str, team: str) -> Glance:
        """Return what tells whether a job of the team looks as it did.

        Raises:
            JobNotFound: there is no such job, or it is another team's.
            DatabaseUnavailable: the database does not answer.
        """
        if job_id not in self.next:
            self.next[job_id] = asyncio.create_task(self.look(job_id, self.looking.get(job_id)))
        # One that asks may go away; the others still wait.
        row = await asyncio.shield(self.next[job_id])
        seen = None if row is None else as_glance(*row)
        if seen is None or seen.owner != team:
            raise job_not_found(job_id)
        return seen

    async def look(self, job_id: str, earlier: asyncio.Task[Any] | None) -> Any:
        """Return the row of a job as it is once the `earlier` look has ended: nobody gets what was so before asking."""
        if earlier is not None:
            with suppress(Exception):
                await asyncio.shield(earlier)
        self.looking[job_id] = mine = self.next.pop(job_id)
        try:
            return await self.reader.one(STATEMENT, job_id=job_id)
        finally:
            if self.looking.get(job_id) is mine:
                del self.looking[job_id]


def job_not_found(job_id: str) -> JobNotFound:
    """Return the refusal for a job that does not exist, or not for this team."""
    return JobNotFound(f"no job has the id {job_id!r}")
