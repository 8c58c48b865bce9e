"""Processes that a child of the worker has left behind outside its session, as one would that wants to outlive it.

A worker that has called `adopt` is their parent as soon as their own is gone, and ends them with the child.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

from app import process

END_SECONDS = 5.0
LOOK_SECONDS = 0.02

log = logging.getLogger(__name__)


class Brood:
    """The children that a worker has started itself, to tell them from those that it was left."""

    def __init__(self) -> None:
        self.adopts = False
        self.own: set[int] = set()
        self.turn = threading.Lock()

    def adopt(self) -> None:
        """Become the parent of what children leave behind, and begin to end it."""
        process.adopt_orphans()
        self.adopts = True

    def start(self, start: Callable[[], "subprocess.Popen[str]"]) -> "subprocess.Popen[str]":
        """Start a child, which leads a session of its own."""
        with self.turn:
            child = start()
            self.own.add(child.pid)
        return child

    def ended(self, child: int) -> None:
        """End what a child that has ended has left behind."""
        self.own.discard(child)
        deadline = time.monotonic() + END_SECONDS
        while self.adopts and (left := list(self.left_behind())):
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > deadline:
                log.error("orphans_do_not_end", extra={"pids": left[:10]})
                return
            time.sleep(LOOK_SECONDS)

    def left_behind(self) -> Iterator[int]:
        """Yield the processes whose parent has become this one, those of its own session aside."""
        with self.turn:
            for each in psutil.Process().children():
                with suppress(ProcessLookupError):
                    session = os.getsid(each.pid)
                    if each.pid not in self.own and session not in self.own and session != os.getsid(0):
                        yield each.pid


BROOD = Brood()
