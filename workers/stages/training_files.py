"""Durable files of training runs in progress: distillations of the model, and those within a part (absorption)."""

from collections.abc import Callable, Iterable
from pathlib import Path

from workers.compression.steps.work import CheckpointStore
from workers.compression.training.checkpoint import TrainingCheckpoint
from workers.compression.training.loop import Observer
from workers.stages.tensor_files import read_tensors, write_tensors
from workers.stages.workbench import Workbench

NUMBERS = ("step", "steps", "tokens", "losses", "restarts")
"""Fields of a checkpoint that are stored as JSON in the file's metadata."""

ABSORPTION = "absorption"
"""Beginning of the names of all files that `AbsorptionCheckpoints` keeps."""

OnSave = Callable[[TrainingCheckpoint], None]
"""Called with each checkpoint once it is saved."""


class CheckpointFiles(Observer):
    """Stores the latest checkpoint of one run as a durable part of a stage's result.

    Older checkpoints are removed once a newer one is recorded. Damaged or unrecorded checkpoints are ignored.
    """

    def __init__(self, bench: Workbench, result: str, run: str) -> None:
        """Store the checkpoints of `run` in the result's directory.

        Args:
            bench: stores results durably.
            result: name of the result whose directory holds the files.
            run: beginning of the files' names, which distinguishes the run from others in the directory.
        """
        self._bench = bench
        self._result = result
        self._prefix = f"{run}-"

    def latest(self) -> TrainingCheckpoint | None:
        """Return the newest intact checkpoint that any attempt has saved, or None; its tensors are read on demand."""
        for file in reversed(self._files()):
            path = self._bench.finished_part(self._result, file)
            if path is not None:
                return read_checkpoint(path)
        return None

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        """Write a checkpoint, remove older ones, and return it with tensors that are read on demand."""
        path = self._path(checkpoint.step)
        write_checkpoint(path, checkpoint)
        self._bench.finish_part(path)
        self._discard(file for file in self._files() if file < path.name)
        return read_checkpoint(path)

    def read(self, step: int) -> TrainingCheckpoint:
        """Return the checkpoint that this attempt saved after a step; its tensors are read on demand."""
        return read_checkpoint(self._path(step))

    def clear(self) -> None:
        """Remove the run's checkpoints, once its result is stored."""
        self._discard(self._files())

    def _path(self, step: int) -> Path:
        return self._bench.begin(self._result) / f"{self._prefix}{step:09d}.safetensors"

    def _files(self) -> list[str]:
        """Return the names of the recorded files, those of earlier steps first."""
        return [file for file in self._bench.parts(self._result) if file.startswith(self._prefix)]

    def _discard(self, files: Iterable[str]) -> None:
        for file in files:
            self._bench.discard_part(self._result, file)


class AbsorptionCheckpoints(CheckpointStore):
    """Stores the checkpoints of the distillations within a stage's parts, and reports each one."""

    def __init__(self, bench: Workbench, result: str, on_save: OnSave) -> None:
        self._bench = bench
        self._result = result
        self._on_save = on_save

    def observer(self, part: str) -> CheckpointFiles:
        """Return the observer that stores the checkpoints of the distillation within `part`."""
        return _ReportedFiles(self._bench, self._result, f"{ABSORPTION}-{part}", self._on_save)

    def clear(self) -> None:
        """Remove all checkpoints, once the distilled part is stored."""
        CheckpointFiles(self._bench, self._result, ABSORPTION).clear()


class _ReportedFiles(CheckpointFiles):
    """Checkpoint files that also pass each saved checkpoint to `on_save`."""

    def __init__(self, bench: Workbench, result: str, run: str, on_save: OnSave) -> None:
        super().__init__(bench, result, run)
        self._on_save = on_save

    def save(self, checkpoint: TrainingCheckpoint) -> TrainingCheckpoint:
        saved = super().save(checkpoint)
        self._on_save(saved)
        return saved


def write_checkpoint(path: Path, checkpoint: TrainingCheckpoint) -> None:
    """Write a checkpoint as one safetensors file, with its numbers in the metadata."""
    write_tensors(path, checkpoint.tensors, {field: getattr(checkpoint, field) for field in NUMBERS})


def read_checkpoint(path: Path) -> TrainingCheckpoint:
    """Return the checkpoint that `write_checkpoint` wrote; its tensors are read on demand."""
    numbers, tensors = read_tensors(path)
    numbers["losses"] = tuple(numbers["losses"])
    return TrainingCheckpoint(**numbers, tensors=tensors)
