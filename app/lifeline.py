"""A pipe by which a child notices that its parent has ended, even by kill -9.

Only the parent holds the writing end, and it writes nothing; the child reads until the end of file. (Linux would send a
parent-death signal as soon as the *thread* that started the child ends, and other systems have none.)
"""

import os
import signal
import threading
import time


class Lifeline:
    """The parent's side: children inherit `reading_end` by `pass_fds`, and end when this process does."""

    def __init__(self) -> None:
        self.reading_end, self._writing_end = os.pipe()

    def close(self) -> None:
        """Close both ends, whereupon the children end."""
        os.close(self.reading_end)
        os.close(self._writing_end)


def end_with_parent(reading_end: int, *, grace_seconds: float) -> None:
    """Make this process end when its parent does: by SIGTERM, then, after `grace_seconds`, at once."""

    def watch() -> None:
        while os.read(reading_end, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
