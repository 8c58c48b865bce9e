"""What a stage is given: the assignment, the results of the stages before it, and a way to report."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel

from app.contract.job import Stage
from app.contract.recipe import Recipe
from workers.compression.spec.formats import named
from workers.compression.spec.methods import Need, method_of
from workers.messages import FETCH_SHARE, Assignment, ProgressReport, ResumedReport
from workers.stages.workbench import Workbench

SHARES = {
    Stage.INSPECT: 0.08,
    Stage.CALIBRATE: 0.01,
    Stage.PLAN: 0.22,
    Stage.COMPRESS: 0.43,
    Stage.WRITE: 0.02,
    Stage.EVALUATE: 0.16,
    Stage.PACKAGE: 0.02,
    Stage.VERIFY: 0.04,
}
"""Part of the whole that each stage takes without distillation and rounding, as measured on a small model; only the
progress bar leans on it."""

ROUNDING_SHARE = 0.1
"""What measuring a format that rounds takes, on the scale of SHARES."""

TOKENS_LIKE_THE_REST = 65_536
"""So many tokens of distillation take as long as all other stages together."""

WRITTEN_LIKE_THE_REST = 131_072
"""So many tokens that the original writes do, too."""

TRIALS_SHARE = 1.2
"""What trying methods takes, on the scale of SHARES."""

ONCE = (Stage.INSPECT, Stage.CALIBRATE)
"""These stages run once, whatever the number of ratios; all others for each of them."""

PACE_NEEDS = 0.02
"""Progress within this attempt before its pace is worth extrapolating."""


@dataclass
class Context:
    """`turn` is the place of the ratio at work among those of the recipe; `span` the part of the stage that runs."""

    assignment: Assignment
    bench: Workbench
    report: Callable[[BaseModel], None]
    results: dict[Stage, Path] = field(default_factory=dict)
    stage: Stage = Stage.INSPECT
    turn: int = 0
    span: tuple[float, float] = (0.0, 1.0)
    started: float = field(default_factory=time.monotonic)
    fraction_at_start: float | None = None

    @property
    def ratio(self) -> float:
        """What the stages make the model smaller by, now."""
        return self.assignment.recipe.ratios[self.turn]

    @property
    def shared(self) -> Workbench:
        """For results that are those of every ratio."""
        return self.bench.inside("")

    def at(self, turn: int) -> "Context":
        """The same for another ratio: results that depend on it are not there yet, and get a folder of their own."""
        once = {stage: result for stage, result in self.results.items() if stage in ONCE}
        folder = f"ratio-{self.assignment.recipe.ratios[turn]!r}" if self.assignment.recipe.is_sweep else ""
        return replace(self, bench=self.bench.inside(folder), results=once, turn=turn)

    def within(self, start: float, stop: float) -> "Context":
        """The same for a part of the running stage, whose progress then goes from `start` to `stop` of the stage's."""
        return replace(self, span=(start, stop))

    def progress(self, fraction: float, detail: str | None = None) -> None:
        """Report how much of the running stage is done."""
        start, stop = self.span
        fraction = start + (stop - start) * fraction
        recipe = self.assignment.recipe
        shares = shares_of(recipe, self.turn)
        before = FETCH_SHARE + sum(sum(shares_of(recipe, turn).values()) for turn in range(self.turn))
        before += sum(share for stage, share in shares.items() if stage in self.results)
        whole = min(before + shares[self.stage] * fraction, 1.0)
        if recipe.is_sweep and self.stage not in ONCE:
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
        """Say that this attempt goes on here with what earlier attempts have finished."""
        # What they did in no time says nothing about the pace of this one.
        self.started, self.fraction_at_start = time.monotonic(), None
        self.report(ResumedReport(stage=self.stage, block=block))


def shares_of(recipe: Recipe, turn: int = 0) -> dict[Stage, float]:
    """Return the part of the whole that each stage takes for this ratio; the rest is FETCH_SHARE and other ratios."""
    whole = sum(sum(weights_of(recipe, each).values()) for each in range(len(recipe.ratios)))
    return {stage: weight / whole * (1 - FETCH_SHARE) for stage, weight in weights_of(recipe, turn).items()}


def weights_of(recipe: Recipe, turn: int) -> dict[Stage, float]:
    """On the scale of SHARES, what each stage takes for a ratio; nothing where its result is there already."""
    tokens = 0 if recipe.distillation is None else recipe.distillation.tokens
    weights = SHARES | {Stage.DISTILL: sum(SHARES.values()) * tokens / TOKENS_LIKE_THE_REST}
    if recipe.distillation is not None:
        # All groups of matrices but the first are compressed between trainings.
        later = weights[Stage.COMPRESS] * (1 - 1 / recipe.distillation.steps)
        weights[Stage.COMPRESS] -= later
        weights[Stage.DISTILL] += later
    if recipe.teacher_text is not None:
        weights[Stage.CALIBRATE] += math.prod(recipe.teacher_text) / WRITTEN_LIKE_THE_REST
    needs = method_of(recipe.method).needs
    if Need.TRIALS in needs:
        weights[Stage.PLAN] += TRIALS_SHARE
    weights[Stage.EVALUATE] += ROUNDING_SHARE * sum(named(name).rounds for name in recipe.formats)
    if turn > 0:
        weights |= dict.fromkeys(ONCE, 0.0)
        if Need.SENSITIVITIES in needs:
            # What planning takes is the measuring, and that serves every ratio.
            weights[Stage.PLAN] = 0.0
    return weights
