"""Keeps the lease of a claimed job alive while something else does the work."""

import logging
import threading
import time
from collections import Counter
from itertools import islice
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from app.db import OUTAGES, Sessions
from app.jobs import store
from app.jobs.events import Happening
from app.jobs.store import Claim, Progress
from app.logs import in_this_context
from modelpress.contract.event import EventKind
from modelpress.contract.job import State
from workers.metrics import BEATS_FAILED, LEASES_LOST, StageClock

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 4
MOST_OF_A_KIND = 5000
"""Events of one kind that an attempt may write."""
MOST_AT_ONCE = 1000


class Lease:
    """Beats in a thread of its own, so that no long call can let the lease run out.

    Once `must_stop` is true the work has to end; it goes on beating meanwhile, unless the lease is lost.
    """

    def __init__(self, sessions: Sessions, claim: Claim, lease_seconds: float) -> None:
        self.sessions = sessions
        self.claim = claim
        self.lease_seconds = lease_seconds
        self.lost = False
        self.cancelled = False
        self.progress: Progress | None = None
        self.reported = time.monotonic()
        self.happenings: SimpleQueue[Happening] = SimpleQueue()
        self.noted: Counter[EventKind] = Counter()
        self.wake = threading.Event()
        self.closing = False
        self.renewed = time.monotonic()
        self.stages = StageClock()
        self.thread = threading.Thread(target=in_this_context(self.keep), name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing = True
        self.stages.leave()
        self.wake.set()
        # Not for ever: the thread may wait for a database that hangs, and a late beat is harmless.
        self.thread.join(self.lease_seconds)

    @property
    def must_stop(self) -> bool:
        return self.cancelled or self.lost or time.monotonic() - self.renewed > self.lease_seconds

    def report(self, progress: Progress) -> None:
        """Send progress with the next beat; at once when a new stage begins."""
        entered = self.progress is None or self.progress.stage != progress.stage
        self.progress, self.reported = progress, time.monotonic()
        if entered:
            self.stages.enter(progress.stage)
            self.note(Happening(EventKind.STAGE, {"stage": progress.stage}))
            log.info("stage_entered", extra={"stage": progress.stage})
            self.wake.set()

    def note(self, happening: Happening) -> None:
        """Queue an event of the job for the next beat; say once, and drop it, after MOST_OF_A_KIND of its kind."""
        self.noted[happening.kind] += 1
        if self.noted[happening.kind] <= MOST_OF_A_KIND:
            self.happenings.put(happening)
        elif self.noted[happening.kind] == MOST_OF_A_KIND + 1:
            log.warning("events_left_out", extra={"job_id": self.claim.job_id, "kind": happening.kind})
            line = f"From here on, events of the kind {happening.kind} are left out: there are {MOST_OF_A_KIND}."
            self.happenings.put(Happening(EventKind.LOG, {"line": line}))

    def hear(self, line: str) -> None:
        """Queue a line of the computing process as an event of the job. PostgreSQL stores no NUL, so it goes."""
        self.note(Happening(EventKind.LOG, {"line": line.replace("\0", "")}))

    def keep(self) -> None:
        """Beat until closed, and then once more if something has happened that is not written yet."""
        while not self.closing and not self.lost:
            self.wake.clear()
            self.beat()
            self.wake.wait(min(self.lease_seconds / BEATS_PER_LEASE, 2.0))
        if not self.lost and not self.happenings.empty():
            self.beat()

    def beat(self) -> None:
        asked, newest = time.monotonic(), self.progress
        happenings = list(islice(iter(self.next_happening, None), MOST_AT_ONCE))
        progress = newest and newest.after(max(asked - self.reported, 0.0))
        try:
            with self.sessions.begin() as session:
                state = store.beat(
                    session, self.claim.job_id, self.claim.attempt, self.lease_seconds, progress, happenings
                )
        except OUTAGES as error:
            for happening in happenings:
                self.happenings.put(happening)
            BEATS_FAILED.inc()
            log.warning("lease_not_renewed", extra={"reason": type(error).__name__})
            return
        except Exception:  # what cannot be stored must not cost the lease: the next beat goes without it
            if not happenings and self.progress is newest:
                self.progress = None
            BEATS_FAILED.inc()
            log.exception("report_not_stored")
            return
        self.renewed = asked
        if state is None:
            LEASES_LOST.inc()
            log.warning("lease_lost")
            self.lost = True
        elif state is State.CANCELLING:
            self.cancelled = True

    def next_happening(self) -> Happening | None:
        """Return what is to be written down next; None where there is nothing."""
        try:
            return self.happenings.get_nowait()
        except Empty:
            return None
