"""What can be done with a job from outside: submit, look, cancel.

Each method commits before it returns, so an answer that a client has seen is never lost.
"""

import logging
import secrets
from collections import defaultdict
from dataclasses import dataclass

from app.contract.job import Job, JobPage, State
from app.contract.recipe import Recipe
from app.db import Sessions
from app.errors import JobEnded, JobNotFound
from app.jobs import repeats, store
from app.jobs.checks import check
from app.jobs.doorbell import Rings
from app.jobs.models import DEFAULT_TEAM
from app.jobs.states import ENDED
from app.jobs.views import as_job, read_cursor, write_cursor
from app.settings import Settings
from app.sources.models import ModelSources
from app.sources.text import TextSources
from app.storage import StoredFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredArtifact:
    """A file of a job's result, and the attempt under whose name it is stored."""

    file: StoredFile
    attempt: int


class JobService:
    def __init__(
        self, settings: Settings, sessions: Sessions, models: ModelSources, texts: TextSources, doorbell: Rings
    ) -> None:
        self.settings = settings
        self.sessions = sessions
        self.models = models
        self.texts = texts
        self.doorbell = doorbell

    def submit(self, recipe: Recipe, key: str | None = None) -> Job:
        """Check all that can be checked without opening a weight, keep the job, ring.

        With an idempotency key that was sent before, return the job that it was sent for.

        Raises:
            Refused: the recipe is wrong; the error names every wrong field. Nothing was kept.
            KeyReused: the key was sent before with another recipe.
            HubUnavailable: the hub could not be asked.
        """
        if key is not None and (earlier := self.posted_with(key, recipe)) is not None:
            return earlier
        checked = check(recipe, self.models, self.texts)
        job_id = f"job_{secrets.token_hex(12)}"
        with self.sessions.begin() as session:
            is_new = key is None or repeats.take(session, DEFAULT_TEAM, key, recipe, job_id)
            if is_new:
                store.submit(session, job_id, checked.recipe, checked.source, self.settings.max_attempts)
        if not is_new and key is not None and (earlier := self.posted_with(key, recipe)) is not None:
            return earlier
        log.info("job_submitted", extra={"job_id": job_id})
        self.doorbell.ring(job_id)
        return self.get(job_id)

    def posted_with(self, key: str, recipe: Recipe) -> Job | None:
        """Return the job that was posted with this idempotency key, or None."""
        with self.sessions() as session:
            job_id = repeats.earlier_job(session, DEFAULT_TEAM, key, recipe)
        return None if job_id is None else self.get(job_id)

    def get(self, job_id: str) -> Job:
        with self.sessions() as session:
            row = store.get(session, job_id)
            if row is None:
                raise JobNotFound(f"no job has the id {job_id!r}")
            return as_job(row, store.attempts(session, [job_id]))

    def page(self, after: str | None, limit: int, state: State | None) -> JobPage:
        """Newest first. `after` is the `next` of the page before."""
        start = None if after is None else read_cursor(after)
        with self.sessions() as session:
            rows = store.page(session, start, limit + 1, state)
            shown = rows[:limit]
            attempts = defaultdict(list)
            for attempt in store.attempts(session, [row.id for row in shown]):
                attempts[attempt.job_id].append(attempt)
        return JobPage(
            jobs=tuple(as_job(row, attempts[row.id]) for row in shown),
            next=write_cursor(shown[-1]) if len(rows) > limit else None,
        )

    def cancel(self, job_id: str) -> Job:
        """Idempotent: cancelling a cancelled job answers as the first time.

        Raises:
            JobNotFound: there is no such job.
            JobEnded: it has succeeded or failed.
        """
        with self.sessions.begin() as session:
            state = store.cancel(session, job_id)
        job = self.get(job_id)
        if state is None and job.state in ENDED:
            raise JobEnded(f"the job has {job.state}, so there is nothing left to cancel")
        return job

    def artifacts(self, job_id: str) -> tuple[StoredArtifact, ...]:
        """The files of the result; none where there is no result, or not yet."""
        with self.sessions() as session:
            if store.get(session, job_id) is None:
                raise JobNotFound(f"no job has the id {job_id!r}")
            return tuple(
                StoredArtifact(StoredFile(row.name, row.bytes, row.sha256, row.media_type), row.attempt)
                for row in store.artifacts(session, job_id)
            )
