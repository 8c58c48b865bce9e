"""How long each stage of a job has taken."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from modelpress.contract.event import EventKind, JobEvent


@dataclass(frozen=True)
class StageTime:
    """A stage, all its turns together."""

    name: str
    seconds: float
    share: float
    """Its part of the time of all stages, from 0 to 1."""
    begins: float
    """Share of the time of all stages before it."""
    is_running: bool = False


def stage_times(events: Iterable[JobEvent], *, is_running: bool) -> list[StageTime]:
    """Return the stages that a job has entered, in their order, with the time until the next event of any kind."""
    marks = [(str(event.data.get("stage", "")) if event.kind is EventKind.STAGE else "", event.at) for event in events]
    current = marks[-1][0] if marks and is_running else ""
    marks.append(("", datetime.now(UTC) if is_running else marks[-1][1] if marks else datetime.now(UTC)))
    seconds: dict[str, float] = {}
    for (name, at), (_, until) in pairwise(marks):
        if name:
            seconds[name] = seconds.get(name, 0.0) + max((until - at).total_seconds(), 0.0)
    whole = sum(seconds.values()) or 1.0
    stages, begins = [], 0.0
    for name, taken in seconds.items():
        stages.append(StageTime(name, taken, taken / whole, begins, name == current))
        begins += taken / whole
    return stages
