"""A pipe by which a child notices that its parent is gone, however it went: kill -9 closes it too.

The parent alone holds the writing end and writes nothing; the child reads until the end of file. (A death signal of
Linux would be sent as soon as the *thread* that started the child ends, and on no other system at all.)
"""

import os
import signal
import threading
import time


class Lifeline:
    """The parent's side: children get `reading_end` by `pass_fds` and end once this process is gone."""

    def __init__(self) -> None:
        self.reading_end, self._writing_end = os.pipe()

    def close(self) -> None:
        os.close(self.reading_end)
        os.close(self._writing_end)


def end_with_parent(reading_end: int, *, grace_seconds: float) -> None:
    """Makes this process end itself when its parent is gone: SIGTERM first, and after the grace without asking."""

    def watch() -> None:
        while os.read(reading_end, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
