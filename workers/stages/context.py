"""What a stage is given: the assignment, the results of the stages before it, and a way to report."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from app.contract.job import Stage
from app.contract.recipe import Recipe
from workers.messages import Assignment, ProgressReport, ResumedReport
from workers.stages.workbench import Workbench

FETCHED = 0.02
"""Part of the whole that the supervisor has already reported for fetching."""

SHARES = {
    Stage.INSPECT: 0.08,
    Stage.CALIBRATE: 0.01,
    Stage.PLAN: 0.22,
    Stage.COMPRESS: 0.43,
    Stage.EVALUATE: 0.18,
    Stage.PACKAGE: 0.02,
    Stage.VERIFY: 0.04,
}
"""Part of the whole that each stage takes without distillation and quantisation, as measured on a small model; only the
progress bar leans on it."""

QUANTISE_SHARE = 0.1
"""What quantisation takes, on the scale of SHARES."""

TOKENS_LIKE_THE_REST = 65_536
"""So many tokens of distillation take as long as all other stages together."""

PACE_NEEDS = 0.02
"""Progress within this attempt before its pace is worth extrapolating."""


@dataclass
class Context:
    assignment: Assignment
    bench: Workbench
    report: Callable[[BaseModel], None]
    results: dict[Stage, Path] = field(default_factory=dict)
    stage: Stage = Stage.INSPECT
    started: float = field(default_factory=time.monotonic)
    fraction_at_start: float | None = None

    def progress(self, fraction: float, detail: str | None = None) -> None:
        """Report how much of the running stage is done."""
        shares = shares_of(self.assignment.recipe)
        before = FETCHED + sum(share for stage, share in shares.items() if stage in self.results)
        whole = min(before + shares[self.stage] * fraction, 1.0)
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


def shares_of(recipe: Recipe) -> dict[Stage, float]:
    """Part of the whole that each stage of the recipe takes; the rest is FETCHED."""
    tokens = 0 if recipe.distillation is None else recipe.distillation.tokens
    weights = SHARES | {Stage.DISTILL: sum(SHARES.values()) * tokens / TOKENS_LIKE_THE_REST}
    weights[Stage.QUANTISE] = 0.0 if recipe.quantisation is None else QUANTISE_SHARE
    return {stage: weight / sum(weights.values()) * (1 - FETCHED) for stage, weight in weights.items()}
