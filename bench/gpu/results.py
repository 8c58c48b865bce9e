"""The results file: which card and commit, and for each step how it ended, its seconds and its figures.

Promise: the file is whole at any time, and holds every figure from the moment on that it was known.
"""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Value = float | int | bool | str

RUNNING, DONE, FAILED, SKIPPED = "running", "done", "failed", "skipped"


class Figures(dict[str, Value]):
    """Figures by name; `changed` is called after each new one."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._changed = changed

    def __setitem__(self, name: str, value: Value) -> None:
        super().__setitem__(name, value)
        self._changed()

    def add(self, found: Mapping[str, Value]) -> None:
        """Take in several figures."""
        super().update(found)
        self._changed()


@dataclass
class StepResult:
    """How a step ended: `status` is one of the four above, `error` says why it failed or was skipped."""

    name: str
    status: str
    seconds: float = 0.0
    figures: Figures = field(default_factory=Figures)
    error: str | None = None
    began: float = field(default_factory=time.time)

    def end(self, status: str, error: str | None = None) -> None:
        """Note how the step has ended, and how long it took."""
        self.status, self.error, self.seconds = status, error, time.time() - self.began


@dataclass
class Results:
    """All that a run has found. `about` says on what: card, memory, commit, libraries."""

    path: Path
    about: dict[str, Any]
    steps: list[StepResult] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what was written to a file."""
        content = json.loads(path.read_text())
        found = cls(path, {name: value for name, value in content.items() if name != "steps"})
        for step in content["steps"]:
            figures = step.pop("figures")
            found.steps.append(StepResult(**step))
            found.steps[-1].figures.add(figures)
        return found

    def begin(self, name: str) -> StepResult:
        """Return the result of a step that begins; its figures are written one by one."""
        step = StepResult(name, RUNNING, figures=Figures(self.write))
        self.steps.append(step)
        self.write()
        return step

    def has(self, name: str) -> bool:
        """Return whether a step was begun."""
        return any(step.name == name for step in self.steps)

    def break_off(self, error: str) -> bool:
        """Mark a step that was running as failed, and return whether there was one."""
        running = [step for step in self.steps if step.status == RUNNING]
        for step in running:
            step.end(FAILED, error)
        self.write()
        return bool(running)

    def write(self) -> None:
        """Write the file."""
        content = {**self.about, "steps": [vars(step) for step in self.steps]}
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(self.path)


def commit() -> str:
    """Return the hash of the commit that is checked out; where git cannot say, what `carry` has noted of it."""
    noted = Path(".gpu/second/commit")
    if noted.exists():
        return noted.read_text().strip()
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
