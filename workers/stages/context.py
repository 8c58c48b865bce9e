"""What a stage works with: the assignment, the results of earlier stages, and a way to report progress."""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from workers.messages import FETCH_SHARE, Assignment, MetricReport, ProgressReport, ResumedReport
from workers.stages.meter import Meter
from workers.stages.workbench import Workbench

TRUST, TRUST_UNMEASURED = 0.25, 0.02
"""How much of a job has to be done for the pace of this attempt to count as much as what was expected, where jobs like
this one have taken it, and where its recipe alone tells."""
BELIEVED, BELIEVED_REPORTS = 0.2, 20
"""The part of a stage, and the reports of it, after which its progress alone tells how long it takes, if no job like
this one has been here. What reports seldom has parts that are not alike."""

MOST_SLOWER = 2.0
"""By what factor a stage is thought to be slower than those before it, at most, if its own progress says so."""

Held = TypeVar("Held")


@dataclass(frozen=True)
class Entered:
    """A stage of one of the ratios, when it was entered, on the monotonic clock, and how often it has reported."""

    place: tuple[str, int]
    at: float
    reports: int = 0


class Shares(Protocol):
    """The fraction of a job that each stage takes; `workers.stages.stage.Schedule` implements it."""

    @property
    def once(self) -> frozenset[str]:
        """Return the names of the stages that run once, whatever the number of ratios."""

    @property
    def seconds(self) -> float:
        """Return the seconds that all stages are expected to take."""

    @property
    def starting(self) -> float:
        """Return the seconds that the process is expected to take until the first stage."""

    @property
    def measured(self) -> bool:
        """Return whether jobs like this one have taken them."""

    def before(self, turn: int, finished: Collection[str]) -> float:
        """Return the fraction of the job that is done once `finished` stages of `recipe.ratios[turn]` are."""


@dataclass
class Context:
    """The state of one attempt while it works on `recipe.ratios[turn]`.

    Attributes:
        assignment: the job, its model and its texts.
        bench: stores the results of the stages durably.
        report: sends a message to the supervisor.
        shares: the fraction of the job that each stage takes.
        results: the result directory of each finished stage, by the stage's name.
        stage: name of the running stage.
        turn: index into the recipe's ratios.
        span: the part of the running stage, as fractions of it, to which progress is scaled.
        held: values that several stages read, cached by `hold`.
        starting: the seconds that the process took until the first stage; 0 if that is not known.
        started: when the pace began to be measured, in seconds of the monotonic clock.
        fraction_at_start: the fraction of the job that was done then.
        entered: the running stage, and when it was entered.
        meter: measures speed, peak memory and fresh opening.
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
    starting: float = 0.0
    started: float = field(default_factory=time.monotonic)
    fraction_at_start: float | None = None
    entered: Entered | None = None
    meter: Meter = field(default_factory=Meter)

    @property
    def ratio(self) -> float:
        """Return the target ratio that this context works on."""
        return self.assignment.recipe.ratios[self.turn]

    @property
    def shared(self) -> Workbench:
        """Return the workbench of the results that all ratios share."""
        return self.bench.inside("")

    def at(self, turn: int) -> "Context":
        """Return the context of `recipe.ratios[turn]`, with the shared results only.

        In a sweep, the results of each ratio lie in a folder of their own.
        """
        once = {stage: result for stage, result in self.results.items() if stage in self.shares.once}
        folder = f"ratio-{self.assignment.recipe.ratios[turn]!r}" if self.assignment.recipe.is_sweep else ""
        return replace(self, bench=self.bench.inside(folder), results=once, turn=turn, held={})

    def within(self, start: float, stop: float) -> "Context":
        """Return a context whose progress 0..1 is reported as `start`..`stop` of the running stage."""
        return replace(self, span=(start, stop))

    def hold(self, key: str, make: Callable[[], Held]) -> Held:
        """Return the cached value of `key`, calling `make` the first time that this ratio asks for it."""
        if key not in self.held:
            self.held[key] = make()
        found: Held = self.held[key]
        return found

    def progress(self, fraction: float, detail: str | None = None) -> None:
        """Report that `fraction` of the running stage (0 to 1) is done, and in `detail` what it is doing."""
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
        here, later = self.seconds_left(before, whole, after)
        self.report(
            ProgressReport(
                stage=self.stage,
                fraction=whole,
                detail=detail,
                seconds_left=here + later,
                stage_seconds_left=here,
            )
        )

    def seconds_left(self, before: float, whole: float, after: float) -> tuple[float, float]:
        """Return the estimated seconds until the running stage ends, and those that the stages behind it take.

        The arguments are fractions of the whole job: what was done when the stage began, is done now, and will be done
        when it ends.
        """
        now = time.monotonic()
        start = self.fraction_at_start or 0.0
        if self.entered is None or self.entered.place != (self.stage, self.turn):
            self.entered = Entered((self.stage, self.turn), now)
        self.entered = replace(self.entered, reports=self.entered.reports + 1)
        unit = self.shares.seconds / (1.0 - FETCH_SHARE)
        trusted = (TRUST if self.shares.measured else TRUST_UNMEASURED) * self.shares.seconds
        begun, spent = max(before, start), now - self.entered.at
        # How long the process took to start is the first that is known of the machine.
        ran, should = trusted + self.starting, trusted + (self.shares.starting if self.starting else 0.0)
        pace = (self.entered.at - self.started + ran) / ((begun - start) * unit + should)
        stage = pace * unit * (after - begun)
        done = (whole - begun) / (after - begun) if after > begun else 1.0
        if 0.0 < done < 1.0 and self.shares.measured:
            # The parts of a stage need not take equally long, so what they say is believed within bounds.
            stage = max(stage, min(spent / done, MOST_SLOWER * stage))
        elif 0.0 < done < 1.0 and spent > 0.0:
            belief = min(done / BELIEVED, 1.0) * min(self.entered.reports / BELIEVED_REPORTS, 1.0)
            stage = stage ** (1.0 - belief) * (spent / done) ** belief
            until_now = (now - self.started + ran) / ((whole - start) * unit + should)
            pace = pace ** (1.0 - belief) * until_now**belief
        if spent > stage > 0.0:
            pace *= spent / stage
        return max(stage - spent, 0.0) if done < 1.0 else 0.0, pace * unit * (1.0 - after)

    def metric(self, step: int, name: str, value: float) -> None:
        """Report a figure that was measured on the way."""
        self.report(MetricReport(step=step, name=name, value=value if math.isfinite(value) else None))

    def resumed(self, block: int | None = None) -> None:
        """Report that this attempt continues from results of earlier attempts, at `block` if it is known."""
        # Progress that earlier attempts made must not count towards this attempt's pace.
        self.started, self.fraction_at_start, self.entered = time.monotonic(), None, None
        self.report(ResumedReport(stage=self.stage, block=block))
