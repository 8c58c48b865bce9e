"""Computes one job after another, each attempt in child processes of its own.

This process talks to Postgres and the broker and never imports torch; the children compute and hold no secret of it. A
child that hangs, leaks, runs out of memory or crashes therefore costs an attempt and nothing else.
"""

import logging
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy.exc import SQLAlchemyError

from app.db import OUTAGES, Sessions
from app.disk import lack_of_room, least_written
from app.jobs import durations, outages, store, turns
from app.jobs.events import Happening
from app.jobs.store import Claim, Progress
from app.logs import logging_with
from app.settings import Settings
from app.storage import Storage, StoredFile
from modelpress.contract.codes import FailureCode
from modelpress.contract.event import EventKind
from modelpress.contract.job import AttemptOutcome, Failure, Resumed
from workers import container, metrics, uploads
from workers.cages import compute_cage, fetch_cage, taken_back
from workers.child import ROOMY, SPARING, Child
from workers.disk import storage_failure
from workers.endings import below_gate, crashed, timed_out, without_result
from workers.failpoints import Point, failpoint
from workers.fetch import FetchDone, FetchProgress, fetch_environment, fetch_report, fetch_request
from workers.labels import device_class, labels
from workers.lease import Lease
from workers.messages import (
    FETCH_SHARE,
    FETCH_STAGE,
    REPORT,
    START_STAGE,
    Assignment,
    AttemptFailed,
    DoneReport,
    ErrorReport,
    Expected,
    MetricReport,
    ProgressReport,
    ResumedReport,
)

log = logging.getLogger(__name__)

RUNNER = "workers.runner"
"""The module that computes, in a process of its own."""
Written = TypeVar("Written")

POLL_SECONDS = 0.2
CONCLUDE_LEASES = 10
"""For how many leases the end of an attempt is tried to be written while the database is away."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class Interrupted(Exception):
    """The attempt has to end early: cancelled, lease lost, or the worker is shutting down."""


@dataclass(frozen=True)
class Published:
    """The result that the child has computed, and the files that are now stored for it."""

    done: DoneReport
    files: tuple[StoredFile, ...]


class Supervisor:
    def __init__(
        self, settings: Settings, sessions: Sessions, storage: Storage, worker: str, stopping: threading.Event
    ) -> None:
        self.settings = settings
        self.sessions = sessions
        self.storage = storage
        self.worker = worker
        self.stopping = stopping
        self.draining = threading.Event()
        self.labels = labels(settings)
        self.turn = threading.Lock()
        self.not_understood: set[str] = set()

    def look(self) -> None:
        """Compute a job whose bell nobody has heard, where this worker has nothing else to do.

        So the broker only ever makes things faster: jobs are found without it.
        """
        if not self.turn.locked():
            self.run()

    def run(self) -> AttemptOutcome | None:
        """Claim the job whose turn it is, compute it, and return how the attempt ended; None if there is none.

        One job is computed at a time; a second caller waits for its turn.
        """
        while not self.turn.acquire(timeout=POLL_SECONDS):
            if self.stopping.is_set():
                return None
        try:
            idle = self.stopping.is_set() or self.draining.is_set()
            return None if idle else self.claim_and_compute()
        finally:
            self.turn.release()

    def claim_and_compute(self) -> AttemptOutcome | None:
        """Claim a job and compute it; see `run`."""
        claim = self.claim()
        if claim is None:
            return None
        started = time.monotonic()
        with logging_with(job_id=claim.job_id, attempt=claim.attempt, request_id=claim.request_id):
            log.info("job_claimed", extra={"worker": self.worker})
            failpoint(Point.CLAIMED)
            self.take_over(claim)
            with Lease(self.sessions, claim, self.settings.lease_seconds) as lease:
                result = self.attempt(claim, lease)
            outcome = self.conclude_for_certain(claim, result)
            failpoint(Point.ENDED)
            log.info("attempt_ended", extra={"outcome": outcome})
        metrics.ATTEMPTS.labels(outcome).observe(time.monotonic() - started)
        return outcome

    def claim(self) -> Claim | None:
        """Claim a job. Raises what the database fails with; then nothing stays claimed.

        Jobs that a newer version of the service has posted are left to workers of that version.
        """
        try:
            with self.sessions.begin() as session:
                lease_seconds = self.settings.lease_seconds
                return turns.claim_next(session, self.worker, self.labels, lease_seconds, self.not_understood)
        except store.NotUnderstood as error:
            log.warning("job_not_understood", extra={"job_id": error.job_id})
            self.not_understood.add(error.job_id)
            return self.claim()
        except OUTAGES:
            # The claim may have been committed and its answer lost. Nobody would compute the job until its lease ends.
            self.persist(self.disown, {"worker": self.worker})
            raise

    def disown(self) -> None:
        """Hand back what this worker has claimed."""
        with self.sessions.begin() as session:
            outages.disown(session, self.worker)

    def take_over(self, claim: Claim) -> None:
        """Go on with the work of the job that this one repeats, if it is still there."""
        if claim.retry_of is None:
            return
        earlier, own = (self.settings.work_dir / job_id for job_id in (claim.retry_of, claim.job_id))
        if own.exists():
            return
        with suppress(OSError):  # gone meanwhile: the job begins anew
            earlier.rename(own)

    def attempt(self, claim: Claim, lease: Lease) -> Published | ErrorReport | None:
        """Compute and publish: the result, what went wrong, or None when the attempt was interrupted."""
        try:
            done = self.compute(claim, lease)
            failpoint(Point.COMPUTED)
            files = self.storage.publish(claim.job_id, claim.attempt, done.package)
            metrics.PUBLISHED_BYTES.inc(sum(file.bytes for file in files))
            failpoint(Point.PUBLISHED)
            return Published(done, files)
        except Interrupted:
            return None
        except AttemptFailed as failed:
            return failed.report()
        except OSError as error:
            # A full disk or a lost mount says nothing about the job.
            log.exception("attempt_broken")
            return storage_failure(error)
        except subprocess.TimeoutExpired:
            # Not even SIGKILL ends a process that waits for its disk.
            log.exception("attempt_broken")
            return ErrorReport(code=FailureCode.STORAGE_FAILED, message="a process waits for its disk and does not end")
        except Exception as error:
            # Whatever else: the job must end with a code, and not by its lease running out again and again.
            log.exception("attempt_broken")
            return ErrorReport(code=FailureCode.INTERNAL_ERROR, message=f"{type(error).__name__}: {error}"[:500])

    def conclude_for_certain(self, claim: Claim, result: Published | ErrorReport | None) -> AttemptOutcome:
        """Write the end even through an outage of the database; the attempt's number keeps that safe at any time."""
        return self.persist(lambda: self.conclude(claim, result), {"job_id": claim.job_id, "attempt": claim.attempt})

    def persist(self, write: Callable[[], Written], concerned: dict[str, Any]) -> Written:
        """Return what `write` returns, once the database is there for it. Raises its last error after many leases."""
        deadline = time.monotonic() + CONCLUDE_LEASES * self.settings.lease_seconds
        while True:
            try:
                return write()
            except OUTAGES:
                if time.monotonic() > deadline:
                    raise
                log.warning("end_not_written", extra=concerned)
                time.sleep(1)

    def conclude(self, claim: Claim, result: Published | ErrorReport | None) -> AttemptOutcome:
        """Write the end of the attempt, unless the job has been taken away from it meanwhile."""
        match result:
            case Published():
                outcome = self.finish(claim, result)
            case ErrorReport():
                outcome = self.fail(claim, result)
            case None:
                outcome = self.interrupt(claim)
        if outcome in (AttemptOutcome.SUCCEEDED, AttemptOutcome.CANCELLED):
            shutil.rmtree(self.settings.work_dir / claim.job_id, ignore_errors=True)
        return outcome

    def finish(self, claim: Claim, result: Published) -> AttemptOutcome:
        done = result.done
        failure = None if done.missed is None else below_gate(done.missed, claim.attempt)
        with self.sessions.begin() as session:
            # A first try may have been committed although its answer was lost.
            finished = store.has_finished(session, claim.job_id, claim.attempt) or store.finish(
                session,
                claim.job_id,
                claim.attempt,
                done.achieved_ratio,
                done.metrics,
                result.files,
                failure,
                done.sweep,
            )
            failpoint(Point.FINISHING)
        if finished:
            return AttemptOutcome.SUCCEEDED if failure is None else AttemptOutcome.FAILED
        self.storage.discard(claim.job_id, claim.attempt)
        return self.interrupt(claim)

    def interrupt(self, claim: Claim) -> AttemptOutcome:
        """End an attempt that was stopped from outside. The files of its finished stages stay for the next one.

        The worker lives, so the attempt counts for nothing, be it that the worker ends or that an outage of the
        database has cost it its lease.
        """
        with self.sessions.begin() as session:
            store.lock(session, claim.job_id)
            if store.stop(session, claim.job_id, claim.attempt):
                return AttemptOutcome.CANCELLED
            if store.release(session, claim.job_id, claim.attempt):
                return AttemptOutcome.RELEASED
            outages.forgive(session, claim.job_id, claim.attempt)
        return AttemptOutcome.LOST

    def fail(self, claim: Claim, report: ErrorReport) -> AttemptOutcome:
        failure = Failure.of(report.code, report.message, stage=report.stage, attempt=claim.attempt)
        delay = store.retry_delay(self.settings.retry_delay_seconds, claim.attempt)
        with self.sessions.begin() as session:
            store.lock(session, claim.job_id)
            if store.stop(session, claim.job_id, claim.attempt):
                return AttemptOutcome.CANCELLED
            ended = outages.conclude(session, claim.job_id, failure, delay, self.settings.storage_patience_seconds)
        return AttemptOutcome.FAILED if ended else AttemptOutcome.LOST

    def compute(self, claim: Claim, lease: Lease) -> DoneReport:
        """Fetch what the recipe names, then compute.

        Raises:
            Interrupted: the attempt has to end.
            AttemptFailed: a child has failed.
        """
        deadline = time.monotonic() + self.settings.job_timeout_seconds
        work_dir = self.settings.work_dir / claim.job_id
        needed = least_written(claim.recipe, claim.source.parameters)
        if lack := lack_of_room(work_dir, needed, self.settings.reserved_disk_bytes):
            raise AttemptFailed(FailureCode.DISK_FULL, lack)
        lease.report(Progress(FETCH_STAGE, 0.0))
        home = home_of(work_dir, claim.attempt)
        for earlier in range(1, claim.attempt):
            # What nobody was left to remove; results of the attempt lie beside it.
            shutil.rmtree(home_of(work_dir, earlier), ignore_errors=True)
        uploaded = uploads.bring(
            self.sessions, self.storage, self.settings.uploads_dir / "copies", claim.job_id, claim.recipe
        )
        assignment = self.assign(claim, self.fetch(claim, lease, home, deadline), uploaded)
        failpoint(Point.FETCHED)
        told = assignment.expected
        lease.report(Progress(START_STAGE, FETCH_SHARE, None, told.left, told.starting))
        environment = OFFLINE | (ROOMY if assignment.memory_bytes is None else SPARING)
        cage = compute_cage(assignment)
        with Child(RUNNER, assignment.model_dump_json(), home, environment, lease.hear, cage) as child:
            failpoint(Point.COMPUTING)
            for event in self.events(child, lease, deadline):
                match report := REPORT.validate_python(event):
                    case ProgressReport():
                        lease.report(Progress(**report.model_dump(exclude={"event"})))
                    case ResumedReport():
                        self.note_resumed(claim, Resumed(stage=report.stage, block=report.block))
                    case MetricReport():
                        data = report.model_dump(mode="json", exclude={"event"})
                        lease.note(Happening(EventKind.METRIC, data))
                    case DoneReport():
                        return report.model_copy(update={"package": taken_back(report.package, work_dir)})
                    case ErrorReport():
                        raise AttemptFailed.reported(report)
        raise without_result("computing")

    def note_resumed(self, claim: Claim, resumed: Resumed) -> None:
        try:
            with self.sessions.begin() as session:
                store.note_resumed(session, claim.job_id, claim.attempt, resumed)
        except SQLAlchemyError:
            # Worth knowing, and not worth the attempt.
            log.exception("resumption_not_noted")

    def fetch(self, claim: Claim, lease: Lease, home: Path, deadline: float) -> FetchDone:
        request = fetch_request(self.settings, claim.recipe, claim.source)
        request.sources_dir.mkdir(parents=True, exist_ok=True)
        cage = fetch_cage(request, home)
        with Child("workers.fetch", request.model_dump_json(), home, fetch_environment(), cage=cage) as child:
            failpoint(Point.FETCHING)
            for event in self.events(child, lease, deadline):
                match report := fetch_report(event):
                    case FetchProgress():
                        lease.report(Progress(FETCH_STAGE, FETCH_SHARE * report.fraction, report.detail))
                    case FetchDone():
                        return report
                    case ErrorReport():
                        raise AttemptFailed.reported(report)
        raise without_result("fetching")

    def assign(self, claim: Claim, fetched: FetchDone, uploaded: dict[str, Path]) -> Assignment:
        return Assignment(
            job_id=claim.job_id,
            attempt=claim.attempt,
            recipe=claim.recipe,
            model_path=fetched.model_path,
            revision=claim.source.revision,
            texts=fetched.texts | uploaded,
            text_revisions=fetched.text_revisions,
            work_dir=self.settings.work_dir / claim.job_id,
            device=self.settings.device,
            threads=self.settings.threads,
            processes=self.settings.processes,
            tasks_dir=self.settings.tasks_dir,
            memory_bytes=self.memory_bytes(claim),
            expected=self.expected(claim, fetched.expected),
        )

    def expected(self, claim: Claim, told: Expected) -> Expected:
        """Return how long each stage has taken in jobs like this one, or else what was `told`."""
        try:
            with self.sessions.begin() as session:
                seconds = durations.of_stages(session, claim.job_id, claim.recipe, device_class(self.settings))
        except SQLAlchemyError:
            log.exception("durations_not_read", extra={"job_id": claim.job_id})
            return told
        return Expected(seconds=seconds, measured=True) if seconds else told

    def memory_bytes(self, claim: Claim) -> int | None:
        """Return what the computing child should stay below: less than at first where that ran out of memory."""
        if not claim.sparing:
            return self.settings.memory_bytes
        free = min(int(psutil.virtual_memory().available), container.left_in_container())
        return max(min(self.settings.memory_bytes or free, free) // 2, 1)

    def events(self, child: Child, lease: Lease, deadline: float) -> Iterator[dict[str, Any]]:
        """Yield what a child reports until it ends well; stops it when the attempt has to end.

        Raises:
            Interrupted: the attempt has to end.
            AttemptFailed: the child took too long or ended badly.
        """
        killed_before = container.oom_kills()
        while True:
            if lease.must_stop or self.stopping.is_set():
                child.stop(self.settings.stop_grace_seconds)
                raise Interrupted
            if time.monotonic() > deadline:
                child.stop(self.settings.stop_grace_seconds)
                raise timed_out(self.settings.job_timeout_seconds)
            try:
                yield child.next_event(POLL_SECONDS)
            except queue.Empty:
                continue
            except EOFError:
                break
        status = child.wait()
        if status != 0:
            raise crashed(status, child, out_of_memory=container.oom_kills() > killed_before)


def home_of(work_dir: Path, attempt: int) -> Path:
    """Return the directory for what the children of an attempt write that is of no use to another attempt."""
    return work_dir / str(attempt) / "home"
