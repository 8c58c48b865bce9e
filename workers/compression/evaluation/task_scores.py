"""Scores by task name, read from a result of lm-evaluation-harness without importing the library."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

UNFILTERED = "none"
"""The library's name for unfiltered answers."""

UNSTATED = (None, "N/A", "Yaml")
"""Values that the library reports as the version of a task that states none."""


@dataclass(frozen=True)
class TaskMetric:
    """One metric of a task. A field is None where the library gives no finite number or no direction."""

    value: float | None
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class TaskScore:
    """The lm-eval result of one task: version, number of examples, few-shot count, and metrics by name."""

    version: str | None
    examples: int
    shots: int | None
    metrics: Mapping[str, TaskMetric]


def scores_in(found: Mapping[str, Any]) -> dict[str, TaskScore]:
    """Return the scores in a result of `lm_eval.simple_evaluate`, by task name.

    A group with scores of its own replaces its tasks; groups without any are left out.
    """
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
    """Yield the tasks and groups below a group, at any depth."""
    for child in children.get(group, ()):
        yield child
        yield from _parts(child, children)


def _metrics(entry: Mapping[str, Any], better: Mapping[str, bool | None]) -> Iterator[tuple[str, TaskMetric]]:
    """Yield metrics by name. The library's keys are 'name,filter' and, for the standard error, 'name_stderr,filter'."""
    for key, value in entry.items():
        name, comma, chosen = key.partition(",")
        if comma and not name.endswith("_stderr"):
            stderr = _number(entry.get(f"{name}_stderr,{chosen}"))
            yield name if chosen == UNFILTERED else key, TaskMetric(_number(value), stderr, better.get(name))


def _number(value: Any) -> float | None:
    """Return a finite number as float, and None for anything else."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _version(stated: Any) -> str | None:
    """Return a task's version as text, or None where it states none."""
    return None if stated in UNSTATED else str(stated)
