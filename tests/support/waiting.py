"""Waiting for facts, of processes above all."""

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

Fact = TypeVar("Fact")
PATIENCE_SECONDS = 600.0
"""Far more than anything takes, on a machine that does other things as well: it only ends what would hang."""


def wait_for(fact: Callable[[], Fact | None], patience_seconds: float = PATIENCE_SECONDS) -> Fact:
    """Return the first true answer. Raises AssertionError where there is none within `patience_seconds`."""
    deadline = time.monotonic() + patience_seconds
    while not (found := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(f"no such fact within {patience_seconds:g} seconds")
        time.sleep(0.02)
    return found


def is_running(pid: int) -> bool:
    """Return whether the process runs; one that has ended and only waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
