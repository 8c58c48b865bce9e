"""Waiting for facts, of processes above all."""

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

Fact = TypeVar("Fact")
PATIENCE_SECONDS = 120.0


def wait_for(fact: Callable[[], Fact | None], patience_seconds: float = PATIENCE_SECONDS) -> Fact:
    """The first true answer."""
    deadline = time.monotonic() + patience_seconds
    while not (found := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(f"no such fact within {patience_seconds:g} seconds")
        time.sleep(0.02)
    return found


def is_running(pid: int) -> bool:
    """One that has ended and only waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
