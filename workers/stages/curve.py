"""The loss curve of a distillation, stored beside the trained part and shown in the report."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from workers.compression.training.checkpoint import TrainingCheckpoint

POINTS = 500
"""Most points of a job's curve, all phases together."""


@dataclass(frozen=True)
class Point:
    """A point of a loss curve: steps and tokens done so far, and the mean loss (nats per token) since the last one."""

    step: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """The course of one training run: tokens trained on, restarts after a divergence, and the loss curve."""

    tokens: int
    restarts: int
    points: tuple[Point, ...]


def curve_of(checkpoint: TrainingCheckpoint, most: int = POINTS) -> Curve:
    """Return the loss curve of a run in at most `most` evenly spread points; the last is the run's last step."""
    losses, count = checkpoint.losses, min(len(checkpoint.losses), most)
    ends = [len(losses) * (number + 1) // count for number in range(count)]
    tokens = checkpoint.tokens // max(1, checkpoint.step)
    points = tuple(
        Point(end, end * tokens, fmean(losses[start:end])) for start, end in zip([0, *ends], ends, strict=False)
    )
    return Curve(checkpoint.tokens, checkpoint.restarts, points)


def joined(curves: Sequence[Curve]) -> Curve:
    """Return the curves of consecutive runs as one curve; steps and tokens count on from run to run."""
    points: list[Point] = []
    for curve in curves:
        step, tokens = (points[-1].step, points[-1].tokens) if points else (0, 0)
        points += [replace(point, step=step + point.step, tokens=tokens + point.tokens) for point in curve.points]
    return Curve(sum(curve.tokens for curve in curves), sum(curve.restarts for curve in curves), tuple(points))


def write_curve(path: Path, curve: Curve) -> None:
    """Write a curve as JSON."""
    path.write_text(json.dumps(asdict(curve), indent=1))


def read_curve(path: Path) -> Curve:
    """Return the curve that `write_curve` wrote."""
    content: dict[str, Any] = json.loads(path.read_text())
    return Curve(content["tokens"], content["restarts"], tuple(Point(**point) for point in content["points"]))
