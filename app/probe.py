"""Looks by itself, again and again, whether something that is needed can be used, so that asking costs nothing."""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class NoAnswer(Exception):
    """Raised while a probed server has not answered yet, or not for too long."""


class Probe:
    """A check that a thread repeats. One that hangs counts as failed while it hangs."""

    def __init__(self, name: str, check: Callable[[], None], *, pause_seconds: float, patience_seconds: float) -> None:
        """Prepare a probe that `start` sets going.

        Args:
            check: returns where all is well, and raises where it is not.
            pause_seconds: from the end of a check to the next one.
            patience_seconds: how long a check may run before it counts as failed.
        """
        self.name = name
        self.check = check
        self.pause_seconds = pause_seconds
        self.patience_seconds = patience_seconds
        self.asked: float | None = None
        self.found: Exception | None = NoAnswer(f"the {name} has not been asked yet")
        self.judged = threading.Event()
        self.closing = threading.Event()

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self.look, name=f"probe-{self.name}", daemon=True).start()

    def close(self) -> None:
        """Look no more; a check that is running is not waited for."""
        self.closing.set()

    @property
    def silent(self) -> bool:
        """Whether a check has been waiting for its answer for too long."""
        asked = self.asked
        return asked is not None and time.monotonic() - asked > self.patience_seconds

    @property
    def fault(self) -> Exception | None:
        """Return what the newest look found wrong; None where it found nothing."""
        return NoAnswer(f"the {self.name} does not answer") if self.silent else self.found

    def look(self) -> None:
        """Check until `close`, and log each change."""
        while not self.closing.is_set():
            self.asked = time.monotonic()
            found = self.outcome()
            if not self.judged.is_set() or (found is None) != (self.found is None):
                log.log(
                    logging.INFO if found is None else logging.WARNING,
                    f"{self.name}_{'answers' if found is None else 'unavailable'}",
                    extra={} if found is None else {"reason": f"{type(found).__name__}: {found}"[:200]},
                )
            self.found, self.asked = found, None
            self.judged.set()
            self.closing.wait(self.pause_seconds)

    def outcome(self) -> Exception | None:
        """Return what the check raises."""
        try:
            self.check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return error
        return None
