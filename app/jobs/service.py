"""What can be done with a job from outside: submit, look, cancel.

Each method commits before it returns, so an answer that a client has seen is never lost.
"""

import logging
import secrets
from collections.abc import Collection
from copy import copy
from dataclasses import dataclass
from typing import Self

from sqlalchemy.orm import Session

from app.db import Sessions, reading
from app.errors import CannotRetry, JobEnded, NotEnded, WorkerNotFound
from app.jobs import estimates, events, listing, posting, quotas, repeats, roster, store, turns, uploads
from app.jobs.checks import Checked, check, look_over
from app.jobs.doorbell import Rings
from app.jobs.glances import job_not_found
from app.jobs.listing import JobFilter
from app.jobs.models import JobRow
from app.jobs.posting import NewJob
from app.jobs.states import ENDED
from app.jobs.turns import Glance
from app.jobs.uploads import TeamTexts
from app.jobs.views import as_event, as_job, as_summary, read_cursor, write_cursor
from app.keys import store as keys
from app.keys.callers import Caller, anyone
from app.keys.store import Entry
from app.settings import Settings
from app.sources.models import ModelSources
from app.sources.text import TextSources
from app.storage import StoredFile
from modelpress.contract.access import Team
from modelpress.contract.estimate import Estimate
from modelpress.contract.event import EventKind, EventPage, JobEvent
from modelpress.contract.job import Job, JobPage, Source, State
from modelpress.contract.recipe import Recipe
from modelpress.contract.worker import WorkerList
from modelpress.errors import Refused

ANY = JobFilter()
MOST_NAMES = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredArtifact:
    """A file of a job's result, and the attempt under whose name it is stored."""

    file: StoredFile
    attempt: int


class JobService:
    """The jobs of one team, on behalf of one caller."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        models: ModelSources,
        texts: TextSources,
        doorbell: Rings,
        caller: Caller | None = None,
    ) -> None:
        self.caller = caller or anyone()
        self.settings = settings
        self.sessions = sessions
        self.models = models
        self.texts = texts
        self.doorbell = doorbell

    def of(self, caller: Caller) -> Self:
        """Return the same service on behalf of another caller."""
        other = copy(self)
        other.caller = caller
        return other

    @property
    def team_texts(self) -> TeamTexts:
        """Return the texts that the caller's team may name."""
        return TeamTexts(self.texts, self.sessions, self.caller.team)

    def text_names(self) -> tuple[str, ...]:
        """Return the uploads that the caller's team may name; of very many, the newest."""
        with self.sessions() as session:
            return tuple(uploads.names(session, self.caller.team, MOST_NAMES))

    def submit(self, recipe: Recipe, key: str | None = None) -> Job:
        """Check all that can be checked without opening a weight, keep the job, ring.

        With an idempotency key that was sent before, return the job that it was sent for.

        Raises:
            Refused: the recipe is wrong; the error names every wrong field. Nothing was kept.
            QueueFull: too many jobs are waiting.
            KeyReused: the key was sent before with another recipe.
            QuotaExceeded: the team has as many jobs as it may have.
            HubUnavailable: the hub could not be asked.
        """
        if key is not None and (earlier := self.posted_with(key, recipe)) is not None:
            return earlier
        checked = check(recipe, self.models, self.team_texts)
        self.require_size(checked)
        job = NewJob(
            new_id(),
            checked.recipe,
            checked.source,
            self.settings.max_attempts,
            self.caller.team,
            request_id=self.caller.request_id,
        )
        accepted = None
        with self.sessions.begin() as session:
            if key is None or repeats.take(session, self.caller.team, key, recipe, job.id):
                accepted = self.accept(session, job, "job.submitted")
        if accepted is None and key is not None and (earlier := self.posted_with(key, recipe)) is not None:
            return earlier
        self.ring(job)
        return accepted or self.get(job.id)

    def estimate(self, recipe: Recipe) -> Estimate:
        """Return what a job would take and make; nothing is kept.

        Raises:
            Refused: the model cannot be read.
            HubUnavailable: the hub could not be asked.
        """
        checked, faults = look_over(recipe, self.models, self.team_texts)
        with self.sessions() as session:
            return estimates.estimate(session, checked, faults)

    def accept(self, session: Session, job: NewJob, action: str, **detail: str) -> Job:
        """Keep a job, if the team may have a further one, and return it as it is then."""
        quotas.check_submission(session, self.caller.team, self.settings.max_queued)
        uploads.hold(session, self.caller.team, job.recipe)
        row = posting.submit(session, job, Entry(self.caller, action, job.id, detail))
        return as_job(row, (), posting.waiting_of(row))

    def ring(self, job: NewJob) -> None:
        """Ring for a job that was accepted."""
        log.info("job_submitted", extra={"job_id": job.id, "team": self.caller.team})
        self.doorbell.ring(job.id, job.recipe.device)

    def retry(self, job_id: str) -> Job:
        """Post a job again that has failed or was cancelled; the new one goes on with what is left of its work.

        Raises:
            JobNotFound: there is no such job.
            CannotRetry: it has not ended, or has succeeded.
            QuotaExceeded: the team has as many jobs as it may have.
        """
        with self.sessions.begin() as session:
            row = self.row(session, job_id)
            if row.state not in (State.FAILED, State.CANCELLED):
                raise CannotRetry(f"the job is {row.state}; only one that has failed or was cancelled can be retried")
            job = NewJob(
                new_id(),
                Recipe.model_validate(row.recipe),
                Source.model_validate(row.source),
                self.settings.max_attempts,
                self.caller.team,
                retry_of=job_id,
                request_id=self.caller.request_id,
                attempt=row.attempt,
            )
            accepted = self.accept(session, job, "job.retried", retry_of=job_id)
        self.ring(job)
        return accepted

    def delete(self, job_id: str) -> int:
        """Delete a job that has ended, and return the number of its attempts, whose files are to be deleted.

        Raises:
            JobNotFound: there is no such job.
            NotEnded: it has not ended.
        """
        with self.sessions.begin() as session:
            row = self.row(session, job_id)
            if row.state not in ENDED:
                raise NotEnded(f"the job is {row.state}; cancel it first")
            store.delete(session, job_id)
            keys.record(session, self.caller, "job.deleted", job_id)
            return row.attempt

    def require_size(self, checked: Checked) -> None:
        """Raise Refused for a model that is larger than the operator allows."""
        most, found = self.settings.max_model_parameters, checked.source.parameters
        if most is not None and found > most:
            raise Refused("model", f"the model has {found:,} parameters, and this service takes up to {most:,}")

    def posted_with(self, key: str, recipe: Recipe) -> Job | None:
        """Return the job that was posted with this idempotency key, or None."""
        with self.sessions() as session:
            job_id = repeats.earlier_job(session, self.caller.team, key, recipe)
        return None if job_id is None else self.get(job_id)

    def row(self, session: Session, job_id: str) -> JobRow:
        """Return the row of a job of this team. Raises JobNotFound for that of another team, too."""
        row = store.get(session, job_id)
        if row is None or row.owner != self.caller.team:
            raise job_not_found(job_id)
        return row

    def team(self) -> Team:
        """Return the team, with what it uses and may use."""
        with self.sessions() as session:
            return quotas.usage(session, self.caller.team)

    def get(self, job_id: str, seen: Glance | None = None) -> Job:
        """Return a job; `seen` is what a glance at it has shown just now."""
        with reading(self.sessions) as session:
            row = self.row(session, job_id)
            seen = seen or turns.glance(session, job_id)
            waiting = seen.waiting if seen and row.state == State.QUEUED else None
            return as_job(row, store.attempts(session, [job_id]), waiting)

    def page(self, after: str | None, limit: int, wanted: JobFilter = ANY) -> JobPage:
        """Return jobs of the team, newest first. `after` is the `next` of the page before."""
        start = None if after is None else read_cursor(after)
        with self.sessions() as session:
            rows = listing.page(session, self.caller.team, wanted, start, limit + 1)
        shown = rows[:limit]
        return JobPage(jobs=tuple(map(as_summary, shown)), next=write_cursor(shown[-1]) if len(rows) > limit else None)

    def events(self, job_id: str, after: int, limit: int, kind: EventKind | None = None) -> EventPage:
        """Return what happened to a job behind the event `after`, oldest first."""
        with self.sessions() as session:
            self.row(session, job_id)
            rows = events.behind(session, job_id, after, limit, kind)
        return EventPage(events=tuple(map(as_event, rows)), next=rows[-1].id if rows else None)

    def latest_events(self, job_id: str, kinds: Collection[EventKind], limit: int) -> tuple[JobEvent, ...]:
        """Return the last events of these kinds, oldest first."""
        with self.sessions() as session:
            self.row(session, job_id)
            return tuple(map(as_event, events.latest(session, job_id, kinds, limit)))

    def state(self, job_id: str) -> State:
        """Return the state of a job."""
        with reading(self.sessions) as session:
            return State(self.row(session, job_id).state)

    def workers(self) -> WorkerList:
        """Return every worker."""
        with self.sessions() as session:
            return WorkerList(workers=tuple(roster.workers(session, self.caller.team)))

    def unserved(self) -> dict[str | None, int]:
        """Return how many jobs of the team wait for a device that no worker serves, by device; None is any device."""
        with self.sessions() as session:
            return turns.unserved(session, self.caller.team)

    def drain(self, worker_id: str) -> WorkerList:
        """Ask a worker to end once it has computed its job. Raises WorkerNotFound where there is none of this id."""
        with self.sessions.begin() as session:
            if not roster.drain(session, worker_id):
                raise WorkerNotFound(f"there is no worker {worker_id!r}; GET /workers lists them")
            keys.record(session, self.caller, "worker.drained", worker_id)
        return self.workers()

    def cancel(self, job_id: str) -> Job:
        """Idempotent: cancelling a cancelled job answers as the first time.

        Raises:
            JobNotFound: there is no such job.
            JobEnded: it has succeeded or failed.
        """
        with self.sessions.begin() as session:
            self.row(session, job_id)
            state = store.cancel(session, job_id)
            if state is not None:
                keys.record(session, self.caller, "job.cancelled", job_id)
        job = self.get(job_id)
        if state is None and job.state in ENDED:
            raise JobEnded(f"the job has {job.state}, so there is nothing left to cancel")
        return job

    def artifacts(self, job_id: str) -> tuple[StoredArtifact, ...]:
        """Return the files of the result; none where there is no result, or not yet."""
        with self.sessions() as session:
            self.row(session, job_id)
            return tuple(
                StoredArtifact(StoredFile(row.name, row.bytes, row.sha256, row.media_type), row.attempt)
                for row in store.artifacts(session, job_id)
            )


def new_id() -> str:
    """Return an id that no job has."""
    return f"job_{secrets.token_hex(12)}"
