"""Start a server again when it ends although it is needed."""

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.embedded.errors import EmbeddedServerError

LOOK_SECONDS = 0.2
SHORTEST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SOUND_SECONDS = 60.0
"""A server that has run for this long is started again at once; one that ended sooner, after ever longer pauses."""

log = logging.getLogger(__name__)


class Watched:
    """A running server's process, which a thread replaces when it has ended."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], start: Callable[[], subprocess.Popen[bytes]]
    ) -> None:
        self.name = name
        self.process = process
        self.start = start
        self.started = time.monotonic()
        self.pause = SHORTEST_PAUSE_SECONDS
        self.needed = True
        self.turn = threading.Lock()
        self.over = threading.Event()

    def watch(self) -> None:
        """Look after the process until `over`. What this thread starts, Linux stops when the thread ends."""
        while not self.over.wait(LOOK_SECONDS):
            if self.process.poll() is not None and not self.over.wait(self.next_pause()):
                self.revive()

    def next_pause(self) -> float:
        """Return how long to wait before the next start."""
        if time.monotonic() - self.started > SOUND_SECONDS:
            self.pause = SHORTEST_PAUSE_SECONDS
        pause, self.pause = self.pause, min(2 * self.pause, LONGEST_PAUSE_SECONDS)
        return pause

    def revive(self) -> None:
        """Start the server again, unless it is not needed any more."""
        with self.turn:
            if not self.needed:
                return
            log.warning("%s has ended unasked with status %s; it is started again", self.name, self.process.returncode)
            try:
                self.process, self.started = self.start(), time.monotonic()
            except (OSError, EmbeddedServerError) as error:
                log.warning("%s could not be started again: %s", self.name, error)


@contextmanager
def watched(
    name: str,
    process: subprocess.Popen[bytes],
    start: Callable[[], subprocess.Popen[bytes]],
    stop: Callable[[subprocess.Popen[bytes]], None],
) -> Iterator[None]:
    """Keep a server running during a `with` block, and stop it afterwards.

    Args:
        name: the server's name in messages.
        process: the server as it runs now.
        start: starts the server again.
        stop: ends the process that it is given, which may have ended already.
    """
    server = Watched(name, process, start)
    thread = threading.Thread(target=server.watch, name=f"watch-{name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with server.turn:
            server.needed = False
        stop(server.process)
        server.over.set()
        thread.join()
