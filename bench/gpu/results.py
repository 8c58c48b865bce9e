"""The results file: which card and commit, and for each step how it ended, its seconds and its figures."""

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

Figures = dict[str, float | int | bool | str]

LIBRARIES = ("torch", "transformers", "safetensors")


@dataclass
class StepResult:
    """How a step ended: "done", "failed" with its error, or "skipped" with the reason."""

    name: str
    status: str
    seconds: float
    figures: Figures = field(default_factory=dict)
    error: str | None = None


@dataclass
class Results:
    """All that a run has found, in a file that is whole after every step."""

    path: Path
    rehearsal: bool
    card: str
    memory_bytes: int
    commit: str
    libraries: dict[str, str]
    steps: list[StepResult] = field(default_factory=list)

    @classmethod
    def begin(cls, path: Path, device: torch.device, *, rehearsal: bool) -> "Results":
        """Return the results of a run that begins now."""
        card, memory = platform.processor() or platform.machine(), 0
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            card, memory = properties.name, properties.total_memory
        return cls(path, rehearsal, card, memory, _commit(), {name: version(name) for name in LIBRARIES})

    def add(self, step: StepResult) -> None:
        """Keep how a step ended."""
        self.steps.append(step)
        content = {name: value for name, value in asdict(self).items() if name != "path"}
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(self.path)


def _commit() -> str:
    """Return the hash of the commit that is checked out; where git cannot say, what `carry` has noted of it."""
    noted = Path(".gpu/second/commit")
    if noted.exists():
        return noted.read_text().strip()
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
