"""Processes that train together, forked from one that has imported what they need."""

from collections.abc import Callable
from typing import Any

from torch import multiprocessing

PRELOADED = ["workers.compression.training.sharded", "workers.compression.training.parallel", "tests.support.students"]


def run_together(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Call `function(rank, *arguments)` in as many processes, and wait for all of them.

    Raises:
        Exception: one of them failed.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    multiprocessing.start_processes(function, arguments, nprocs=processes, start_method="forkserver")
