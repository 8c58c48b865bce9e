"""Repairs what crashes leave behind. Every worker runs it; rows that one repairs are skipped by the others.

It needs no message from the broker: with the broker down, jobs still return to the queue, and once it is back they are
rung again.
"""

import logging
import math
import shutil
import threading
import time
from collections.abc import Set
from pathlib import Path

from app.db import Sessions
from app.deliveries import store as deliveries
from app.jobs import ownership, reaper, repeats, roster, turns
from app.jobs.doorbell import Rings
from app.settings import Settings
from app.sources import unused
from app.storage import Storage
from workers import metrics

CLAIM_SECONDS = 600.0
"""More than passes between the look into the database and the deletion, or between a claim and its fetch."""

log = logging.getLogger(__name__)


class Sweeper:
    def __init__(
        self, settings: Settings, sessions: Sessions, doorbell: Rings, storage: Storage, identity: str
    ) -> None:
        """Repair what `sessions` lead to. `identity` is that of the database whose files the storage holds."""
        self.settings = settings
        self.sessions = sessions
        self.doorbell = doorbell
        self.storage = storage
        self.identity = identity
        self.work_of_nobody = Sightings(settings.quarantine_dir / "seen" / "work")
        self.artifacts_of_nobody = Sightings(settings.quarantine_dir / "seen" / "artifacts")

    def run(self, stopping: threading.Event) -> None:
        """Sweep until the worker stops. Files are looked through less often: an object store charges for each list."""
        collected = -math.inf
        while not stopping.wait(self.settings.sweep_seconds):
            due = time.monotonic() - collected >= self.settings.collect_seconds
            self.sweep(collect=due)
            collected = time.monotonic() if due else collected

    def sweep(self, *, collect: bool = True) -> None:
        """Make every repair once; one that fails does not keep the others from their turn."""
        for repair in (self.reap, self.ring_again, self.forget, *([self.collect] if collect else [])):
            try:
                repair()
            except Exception:  # a loop that must outlive any surprise; it is logged and tried again
                metrics.REPAIRS_FAILED.labels(repair.__name__).inc()
                log.exception("repair_failed", extra={"repair": repair.__name__})

    def reap(self) -> None:
        """Put jobs whose worker fell silent back into the queue, or fail them when no attempt is left."""
        with self.sessions.begin() as session:
            reaped = reaper.reap(session, self.settings.retry_delay_seconds)
        for job in reaped:
            metrics.JOBS_REAPED.labels(job.state).inc()
            log.warning("job_reaped", extra={"job_id": job.job_id, "state": job.state})

    def ring_again(self) -> None:
        """Ring for queued jobs that nobody has claimed: the message may be lost."""
        with self.sessions.begin() as session:
            unheard = turns.due_to_ring(session, self.settings.ring_again_seconds)
        for job_id, device in unheard:
            if not self.doorbell.ring(job_id, device):
                break
            metrics.RUNG_AGAIN.inc()

    def forget(self) -> None:
        """Delete idempotency keys that have expired, workers that were lost long ago, and the log of old deliveries."""
        with self.sessions.begin() as session:
            repeats.forget(session)
            roster.forget(session)
            deliveries.forget(session)

    def collect(self) -> None:
        """Delete work and artifacts that no job of this database has use for, and set aside those of no known job.

        Files are judged by the database that they belong to alone. One that was put in its place under a running
        worker, by a changed address or a restored server, decides nothing.
        """
        with self.sessions() as session:
            identity = ownership.identity(session)
        if identity != self.identity:
            log.error("database_changed", extra={"expected": self.identity, "found": identity})
            return
        self.collect_deleted()
        self.collect_work()
        self.collect_artifacts()
        self.collect_sources()

    def collect_deleted(self) -> None:
        """Delete the files of jobs and uploads that were deleted."""
        with self.sessions() as session:
            deleted = ownership.deleted(session)
        if not deleted:
            return
        for job_id, attempt in self.storage.attempts():
            if job_id in deleted:
                self.storage.discard(job_id, attempt)
        for job_id in deleted:
            shutil.rmtree(self.settings.work_dir / job_id, ignore_errors=True)
            for copy in (self.settings.uploads_dir / "copies").glob(f"{job_id}.*"):
                copy.unlink(missing_ok=True)
        with self.sessions.begin() as session:
            ownership.forget_deleted(session, deleted)

    def collect_artifacts(self) -> None:
        """Delete what an attempt had published when it lost its job, or its worker died before it could say so."""
        published = self.storage.attempts()
        if not published:
            return
        with self.sessions() as session:
            superseded = ownership.superseded(session, published)
            unknown = ownership.unknown(session, [job_id for job_id, _ in published])
        for job_id, attempt in superseded:
            self.storage.discard(job_id, attempt)
            log.info("artifacts_collected", extra={"job_id": job_id, "attempt": attempt})
        lost = self.artifacts_of_nobody.older_than(self.settings.keep_unknown_seconds, unknown)
        for job_id, attempt in published:
            if job_id in lost:
                self.storage.set_aside(job_id, attempt)
                metrics.SET_ASIDE.inc()
                log.warning("unknown_artifacts_set_aside", extra={"job_id": job_id, "attempt": attempt})

    def collect_work(self) -> None:
        """Delete the work files of jobs that ended some time ago."""
        work = self.settings.work_dir
        names = [path.name for path in work.iterdir()] if work.exists() else []
        if not names:
            return
        with self.sessions() as session:
            ended = ownership.ended_since(session, names, self.settings.keep_work_seconds)
            unknown = ownership.unknown(session, names)
        for name in ended:
            shutil.rmtree(work / name, ignore_errors=True)
            log.info("work_collected", extra={"job_id": name})
        for name in self.work_of_nobody.older_than(self.settings.keep_unknown_seconds, unknown):
            aside = self.settings.quarantine_dir / "work" / f"{name}-{time.time_ns()}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            (work / name).rename(aside)
            log.warning("unknown_work_set_aside", extra={"job_id": name, "path": str(aside)})

    def collect_sources(self) -> None:
        """Delete what was fetched and has not been used for long; where jobs wait for a full disk, the oldest as well.

        Nothing that a running attempt may have opened is touched: it was marked as used after that attempt began.
        """
        found = sorted(unused.kept(self.settings.sources_dir), key=lambda each: -each.age_seconds)
        if not found:
            return
        with self.sessions() as session:
            idle_seconds = ownership.longest_run(session) + CLAIM_SECONDS
            lacking = ownership.waits_for_disk(session)
        for place, each in enumerate(found):
            early = lacking and place == 0
            age = idle_seconds if early else max(idle_seconds, self.settings.keep_sources_seconds)
            if each.age_seconds >= age and unused.delete(each.final, age):
                log.info("sources_collected", extra={"path": str(each.final), "age_seconds": round(each.age_seconds)})


class Sightings:
    """Since when files of jobs that the database does not know have been seen, kept on disk beside them.

    A job that is known again, because a newer dump was restored, starts anew when it is missed the next time.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def older_than(self, age_seconds: float, names: Set[str]) -> set[str]:
        """Note that these names, and no others, are unknown now, and return those that have been for this long."""
        if names:
            self.directory.mkdir(parents=True, exist_ok=True)
        elif not self.directory.exists():
            return set()
        old = set()
        for name in names:
            sighting = self.directory / name
            if not sighting.exists():
                log.warning("files_of_unknown_job", extra={"job_id": name})
                sighting.touch()
            if time.time() - sighting.stat().st_mtime >= age_seconds:
                old.add(name)
        for sighting in self.directory.iterdir():
            if sighting.name not in names:
                sighting.unlink(missing_ok=True)
        return old
