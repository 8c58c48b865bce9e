"""Keeps this worker in the list of workers, and ends it when an operator has asked for that."""

import logging
import os
import signal
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from app.db import Sessions
from app.jobs import roster
from app.jobs.roster import BEAT_SECONDS, Introduction

log = logging.getLogger(__name__)


def end_process() -> None:
    """Let Celery end this process as it does when it is stopped from outside."""
    os.kill(os.getpid(), signal.SIGTERM)


class Presence:
    """Beats until the worker stops. `draining` is set once it is to take no further job."""

    def __init__(
        self,
        sessions: Sessions,
        worker: Introduction,
        draining: threading.Event,
        turn: threading.Lock,
        end: Callable[[], None] = end_process,
        look: Callable[[Introduction], Introduction] = lambda worker: worker,
    ) -> None:
        """Speak for `worker`, which holds `turn` while it computes; `end` ends it, `look` adds its GPU."""
        self.sessions = sessions
        self.worker = worker
        self.draining = draining
        self.turn = turn
        self.end = end
        self.look = look

    def run(self, stopping: threading.Event) -> None:
        """Beat again and again, and leave the list at the end."""
        # Beside the beats: torch takes its time to see a GPU.
        threading.Thread(target=self.see, name="gpu", daemon=True).start()
        while not stopping.is_set():
            self.beat()
            stopping.wait(BEAT_SECONDS)
        try:
            with self.sessions.begin() as session:
                roster.leave(session, self.worker.id)
        except SQLAlchemyError:
            log.warning("not_taken_from_list", extra={"worker": self.worker.id})

    def see(self) -> None:
        """Find the worker's GPU; the next beat writes it."""
        self.worker = self.look(self.worker)

    def beat(self) -> None:
        """Write that the worker lives, and end it if it was asked to end and computes nothing."""
        try:
            with self.sessions.begin() as session:
                asked = roster.beat(session, self.worker)
        except SQLAlchemyError as error:
            log.warning("presence_not_written", extra={"worker": self.worker.id, "reason": type(error).__name__})
            return
        if asked and not self.draining.is_set():
            log.info("worker_drains", extra={"worker": self.worker.id})
            self.draining.set()
        if self.draining.is_set() and not self.turn.locked():
            self.end()
