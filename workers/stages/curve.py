"""How a training went, as it is kept beside what it left and as the report shows it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from workers.compression.training.training import Checkpoint

POINTS = 500
"""A curve has at most so many, all trainings of a job together."""


@dataclass(frozen=True)
class Point:
    """The mean loss of the steps since the point before."""

    step: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """A training of so many tokens. It diverged `restarts` times, and went on at half the learning rate each time."""

    tokens: int
    restarts: int
    points: tuple[Point, ...]


def curve_of(checkpoint: Checkpoint, most: int = POINTS) -> Curve:
    """At most so many points, evenly spread, the last of which is the end."""
    losses, count = checkpoint.losses, min(len(checkpoint.losses), most)
    ends = [len(losses) * (number + 1) // count for number in range(count)]
    tokens = checkpoint.tokens // max(1, checkpoint.step)
    points = tuple(
        Point(end, end * tokens, fmean(losses[start:end])) for start, end in zip([0, *ends], ends, strict=False)
    )
    return Curve(checkpoint.tokens, checkpoint.restarts, points)


def joined(curves: Sequence[Curve]) -> Curve:
    """Trainings one after another as a single one."""
    points: list[Point] = []
    for curve in curves:
        step, tokens = (points[-1].step, points[-1].tokens) if points else (0, 0)
        points += [replace(point, step=step + point.step, tokens=tokens + point.tokens) for point in curve.points]
    return Curve(sum(curve.tokens for curve in curves), sum(curve.restarts for curve in curves), tuple(points))


def write_curve(path: Path, curve: Curve) -> None:
    path.write_text(json.dumps(asdict(curve), indent=1))


def read_curve(path: Path) -> Curve:
    found: dict[str, Any] = json.loads(path.read_text())
    return Curve(found["tokens"], found["restarts"], tuple(Point(**point) for point in found["points"]))
