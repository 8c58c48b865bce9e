"""What a stage is given: the assignment, the results of the stages before it, and a way to report."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from workers.messages import Assignment, ProgressReport, ResumedReport
from workers.stages.meter import Meter
from workers.stages.workbench import Workbench

PACE_NEEDS = 0.02
"""Progress within this attempt before its pace is worth extrapolating."""


Held = TypeVar("Held")


class Shares(Protocol):
    """How much of a job each stage takes; `workers.stages.stage.Schedule` says it."""

    @property
    def once(self) -> frozenset[str]:
        """Return the names of the stages that run once, whatever the number of ratios."""

    def before(self, turn: int, finished: Collection[str]) -> float:
        """Return the fraction of the job that is done once the stages `finished` of the ratio number `turn` are."""


@dataclass
class Context:
    """One attempt while it works on the ratio number `turn` of its recipe.

    `results` are the directories that the finished stages have left, by the name of the stage; `stage` is the one that
    runs, and `span` the part of it that progress is reported for. `held` keeps what stages read again and again.
    """

    assignment: Assignment
    bench: Workbench
    report: Callable[[BaseModel], None]
    shares: Shares
    results: dict[str, Path] = field(default_factory=dict)
    stage: str = ""
    turn: int = 0
    span: tuple[float, float] = (0.0, 1.0)
    held: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    fraction_at_start: float | None = None
    meter: Meter = field(default_factory=Meter)

    @property
    def ratio(self) -> float:
        """Return the target ratio at work."""
        return self.assignment.recipe.ratios[self.turn]

    @property
    def shared(self) -> Workbench:
        """Return the workbench of the results that serve every ratio."""
        return self.bench.inside("")

    def at(self, turn: int) -> "Context":
        """Return the context of another ratio: results that depend on it are not there yet, and get a folder."""
        once = {stage: result for stage, result in self.results.items() if stage in self.shares.once}
        folder = f"ratio-{self.assignment.recipe.ratios[turn]!r}" if self.assignment.recipe.is_sweep else ""
        return replace(self, bench=self.bench.inside(folder), results=once, turn=turn, held={})

    def within(self, start: float, stop: float) -> "Context":
        """Return the context of a part of the running stage, from the fraction `start` of it to `stop`."""
        return replace(self, span=(start, stop))

    def hold(self, key: str, make: Callable[[], Held]) -> Held:
        """Return what `make` gave when this ratio first asked for `key`."""
        if key not in self.held:
            self.held[key] = make()
        found: Held = self.held[key]
        return found

    def progress(self, fraction: float, detail: str | None = None) -> None:
        """Report that a fraction of the running stage is done, and what it is doing."""
        start, stop = self.span
        fraction = start + (stop - start) * fraction
        before = self.shares.before(self.turn, self.results)
        after = self.shares.before(self.turn, {*self.results, self.stage})
        # At its end exactly `after`: the sum of `before` and a product can be rounded past where the next stage begins.
        whole = min((1 - fraction) * before + fraction * after, 1.0)
        if self.assignment.recipe.is_sweep and self.stage not in self.shares.once:
            detail = f"ratio {self.ratio:g}" + (f", {detail}" if detail else "")
        if self.fraction_at_start is None:
            self.fraction_at_start = whole
        self.report(
            ProgressReport(stage=self.stage, fraction=whole, detail=detail, seconds_left=self.seconds_left(whole))
        )

    def seconds_left(self, whole: float) -> float | None:
        gained = whole - (self.fraction_at_start or 0.0)
        if gained < PACE_NEEDS:
            return None
        return (time.monotonic() - self.started) / gained * (1.0 - whole)

    def resumed(self, block: int | None = None) -> None:
        """Report that this attempt goes on here with what earlier attempts have finished."""
        # What they did in no time says nothing about the pace of this one.
        self.started, self.fraction_at_start = time.monotonic(), None
        self.report(ResumedReport(stage=self.stage, block=block))
