"""The files in which the distillation of a removed block is kept while it is under way."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from workers.compression.steps.local_distillation import Checkpoint
from workers.compression.steps.work import CheckpointStore
from workers.stages.workbench import Workbench

Told = Callable[[Checkpoint], None]


class CheckpointFiles(CheckpointStore):
    """One file for each checkpoint; the last one that was recorded counts, and takes the place of those before it."""

    def __init__(self, bench: Workbench, name: str, directory: Path, tell: Told) -> None:
        """`directory` is that of the stage's result `name`; `tell` hears of every checkpoint that is kept."""
        self._bench = bench
        self._name = name
        self._directory = directory
        self._tell = tell

    def latest(self, part: str) -> Checkpoint | None:
        for file in reversed(self._files(part)):
            path = self._bench.finished_part(self._name, file)
            if path is not None:
                return read_checkpoint(path)
        return None

    def keep(self, part: str, checkpoint: Checkpoint) -> None:
        earlier = self._files(part)
        path = self._directory / f"{_prefix(part)}{checkpoint.step:09d}.safetensors"
        write_checkpoint(path, checkpoint)
        self._bench.finish_part(path)
        self._discard(file for file in earlier if file != path.name)
        self._tell(checkpoint)

    def clear(self) -> None:
        """Remove every checkpoint: the part that was distilled is finished."""
        self._discard(self._files(""))

    def _files(self, part: str) -> list[str]:
        """The first step first."""
        return [file for file in self._bench.parts(self._name) if file.startswith(_prefix(part))]

    def _discard(self, files: Iterable[str]) -> None:
        for file in files:
            self._bench.discard_part(self._name, file)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    numbers = {"step": checkpoint.step, "loss": checkpoint.loss}
    save_file(dict(checkpoint.tensors), path, metadata={"checkpoint": json.dumps(numbers)})


def read_checkpoint(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        numbers = json.loads(file.metadata()["checkpoint"])
    return Checkpoint(numbers["step"], numbers["loss"], load_file(path))


def _prefix(part: str) -> str:
    return f"distillation-{part}-" if part else "distillation-"
