"""Repairs what crashes leave behind. Every worker runs it; rows that one repairs are skipped by the others.

It needs no message from the broker: with the broker down, jobs still return to the queue, and once it is back they are
rung again.
"""

import logging
import shutil
import threading

from app.db import Sessions
from app.jobs import store
from app.jobs.doorbell import Rings
from app.settings import Settings
from app.storage import Storage

log = logging.getLogger(__name__)


class Sweeper:
    def __init__(self, settings: Settings, sessions: Sessions, doorbell: Rings, storage: Storage) -> None:
        self.settings = settings
        self.sessions = sessions
        self.doorbell = doorbell
        self.storage = storage

    def run(self, stopping: threading.Event) -> None:
        while not stopping.wait(self.settings.sweep_seconds):
            self.sweep()

    def sweep(self) -> None:
        """Every repair once; one that fails does not keep the others from their turn."""
        for repair in (self.reap, self.ring_again, self.collect_work, self.collect_artifacts):
            try:
                repair()
            except Exception:  # a loop that must outlive any surprise; it is logged and tried again
                log.exception("repair_failed", extra={"repair": repair.__name__})

    def reap(self) -> None:
        """Jobs whose worker fell silent go back to the queue, or fail when no attempt is left."""
        with self.sessions.begin() as session:
            reaped = store.reap(session, self.settings.retry_delay_seconds)
        for job in reaped:
            log.warning("job_reaped", extra={"job_id": job.job_id, "state": job.state})

    def ring_again(self) -> None:
        """Queued jobs that nobody has claimed: the message may be lost."""
        with self.sessions.begin() as session:
            unheard = store.due_to_ring(session, self.settings.ring_again_seconds)
        for job_id in unheard:
            if not self.doorbell.ring(job_id):
                break

    def collect_artifacts(self) -> None:
        """Files that an attempt had published when it lost its job, or its worker died before it could say so."""
        published = self.storage.attempts()
        if not published:
            return
        with self.sessions() as session:
            superseded = store.superseded(session, published)
        for job_id, attempt in superseded:
            self.storage.discard(job_id, attempt)
            log.info("artifacts_collected", extra={"job_id": job_id, "attempt": attempt})

    def collect_work(self) -> None:
        """Work files of jobs that ended some time ago or never existed."""
        work = self.settings.work_dir
        names = [path.name for path in work.iterdir()] if work.exists() else []
        if not names:
            return
        with self.sessions() as session:
            ended = store.ended_since(session, names, self.settings.keep_work_seconds)
        for name in ended:
            shutil.rmtree(work / name, ignore_errors=True)
            log.info("work_collected", extra={"job_id": name})
