"""The GPU that a worker computes on: asked of torch, in a process of its own.

    found = look("auto")                # None where there is none

Only torch knows the order in which CUDA counts the cards, and that a slice of MIG has less memory than its card.
"""

import logging
import queue
import tempfile
from dataclasses import dataclass
from pathlib import Path

from workers.child import Child

log = logging.getLogger(__name__)

ASKED = "workers.gpu_asked"
"""The module that asks torch."""

PATIENCE_SECONDS = 120.0
"""How long torch may take to say what it sees: a driver that hangs is not waited for."""


@dataclass(frozen=True)
class Gpu:
    """The name of a GPU, or of a slice of one, and its memory in bytes."""

    name: str
    memory_bytes: int


def look(device: str) -> Gpu | None:
    """Return the GPU that `device` (auto, cuda or cuda:N) stands for; None where torch sees none, or does not say."""
    asked = "cuda" if device == "auto" else device
    with tempfile.TemporaryDirectory(prefix="gpu-") as home, Child(ASKED, asked, Path(home), {}) as child:
        try:
            return Gpu(**child.next_event(PATIENCE_SECONDS))
        except (queue.Empty, EOFError, TypeError) as error:
            log.warning("gpu_not_seen", extra={"device": device, "reason": type(error).__name__})
            return None
