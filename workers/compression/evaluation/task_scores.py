"""What a result of the lm-evaluation-harness says, without the library: scores by the names of tasks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

UNFILTERED = "none"
"""The library's name for answers that are taken as they are."""

UNSTATED = (None, "N/A", "Yaml")
"""What the library reports as the version of a task that states none."""


@dataclass(frozen=True)
class TaskMetric:
    """A measure of a task. None: no finite number, no standard error, not stated."""

    value: float | None
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class TaskScore:
    """What a model came to on a task. `examples` were asked, each after `shots` that were solved."""

    version: str | None
    examples: int
    shots: int | None
    metrics: Mapping[str, TaskMetric]


def scores_in(found: Mapping[str, Any]) -> dict[str, TaskScore]:
    """The scores in a result of the library."""
    children: Mapping[str, Sequence[str]] = found.get("group_subtasks", {})
    summed_up = found.get("groups", {})
    hidden = {part for group in summed_up for part in _parts(group, children)} | (children.keys() - summed_up.keys())
    return {
        name: TaskScore(
            version=_version(found["versions"].get(name)),
            examples=int(entry["sample_len"]),
            shots=found["n-shot"].get(name),
            metrics=dict(_metrics(entry, found["higher_is_better"].get(name, {}))),
        )
        for name, entry in found["results"].items()
        if name not in hidden
    }


def _parts(group: str, children: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for child in children.get(group, ()):
        yield child
        yield from _parts(child, children)


def _metrics(entry: Mapping[str, Any], better: Mapping[str, bool | None]) -> Iterator[tuple[str, TaskMetric]]:
    """The library writes a measure as 'name,filter' and its standard error as 'name_stderr,filter'."""
    for key, value in entry.items():
        name, comma, chosen = key.partition(",")
        if comma and not name.endswith("_stderr"):
            stderr = _number(entry.get(f"{name}_stderr,{chosen}"))
            yield name if chosen == UNFILTERED else key, TaskMetric(_number(value), stderr, better.get(name))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _version(stated: Any) -> str | None:
    return None if stated in UNSTATED else str(stated)
