"""Sends what lies in the outbox, at least once, and never in a transaction. Every worker runs it."""

import logging
import random
import threading
from concurrent.futures import ThreadPoolExecutor

from app.db import Sessions
from app.deliveries import store
from app.deliveries.registry import SINKS
from app.deliveries.sink import DeliveryFailed
from app.deliveries.store import DELAYS, Outgoing
from app.settings import Settings

SENDERS = 8
PAUSE_SECONDS = 1.0
JITTER = 0.1
"""Fraction by which a delay is stretched at random, so that what failed together is not tried together."""

log = logging.getLogger(__name__)


class Courier:
    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        """Send what `sessions` lead to."""
        self.settings = settings
        self.sessions = sessions

    def run(self, stopping: threading.Event) -> None:
        """Send until the worker stops."""
        while not stopping.is_set():
            try:
                sent = self.send_due()
            except Exception:  # a loop that must outlive any surprise; it is logged and tried again
                log.exception("deliveries_broken")
                sent = 0
            if sent == 0:
                stopping.wait(PAUSE_SECONDS)

    def send_due(self) -> int:
        """Send what is due, as much as is sent at a time, and return how much that was."""
        with self.sessions.begin() as session:
            due = store.take_due(session, SENDERS)
        if due:
            with ThreadPoolExecutor(SENDERS, thread_name_prefix="courier") as senders:
                list(senders.map(self.send, due))
        return len(due)

    def send(self, outgoing: Outgoing) -> None:
        """Send once, and write down what became of it."""
        facts = {"message_id": outgoing.message_id, "sink": outgoing.sink, "attempt": outgoing.attempt}
        try:
            SINKS[outgoing.sink](outgoing, self.settings)
        except DeliveryFailed as failed:
            log.warning("not_delivered", extra={**facts, "reason": str(failed)})
            self.note_failed(outgoing, str(failed), gone=failed.gone)
        except Exception as error:  # a fault of ours: it is logged, and sent again as if the receiver were down
            log.exception("delivery_broken", extra=facts)
            self.note_failed(outgoing, f"the service has failed: {type(error).__name__}")
        else:
            log.info("delivered", extra=facts)
            with self.sessions.begin() as session:
                store.note_delivered(session, outgoing)

    def note_failed(self, outgoing: Outgoing, error: str, *, gone: bool = False) -> None:
        """Write down that an attempt has failed, and when the next one is."""
        left = DELAYS[outgoing.attempt - 1 :]
        delay = None if gone or not left else left[0] * (1 + JITTER * random.random())  # noqa: S311 - no secret
        with self.sessions.begin() as session:
            store.note_failed(session, outgoing, error, delay)
            if gone:
                store.disable(session, outgoing)
