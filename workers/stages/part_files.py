"""Files that store the finished parts of a compressed model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.compression.parts import CompressedPart, PartStore
from workers.stages.tensor_files import read_tensors, write_tensors
from workers.stages.workbench import Workbench


@dataclass(frozen=True)
class StagePlace:
    """The numbers of the parts, among all parts of the model, that one stage makes and stores beside its result."""

    stage: str
    numbers: range


class PartFiles(PartStore):
    """Finished parts in durable files, in order; each is read from disk whenever it is asked for.

    Index 0 is the first part of the first of the `places`. New parts are written to `directory`.
    """

    def __init__(self, bench: Workbench, places: Sequence[StagePlace], directory: Path | None = None) -> None:
        self._bench = bench
        self._directory = directory
        self._numbers = [(number, place.stage) for place in places for number in place.numbers]
        self._paths: list[Path] = []
        for number, stage in self._numbers:
            path = bench.finished_part(stage, file_name(number))
            if path is None:
                break
            self._paths.append(path)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> CompressedPart:
        return read_part(self._paths[index])

    def __iter__(self) -> Iterator[CompressedPart]:
        return map(read_part, tuple(self._paths))

    def append(self, part: CompressedPart) -> None:
        """Make the next part durable.

        Raises:
            ValueError: the store has no directory to write to, or already holds all of its parts.
        """
        if self._directory is None or len(self) == len(self._numbers):
            raise ValueError("no further part belongs here")
        number, _ = self._numbers[len(self)]
        path = self._directory / file_name(number)
        write_part(path, part)
        self._bench.finish_part(path)
        self._paths.append(path)

    def made_elsewhere(self) -> bool:
        """Return whether an earlier attempt made the last part."""
        return bool(self._paths) and self._paths[-1].parent != self._directory


class ScratchFiles(PartStore):
    """Temporary parts in files; nothing records them as durable."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0
        directory.mkdir(parents=True)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> CompressedPart:
        return read_part(self._directory / file_name(index))

    def __iter__(self) -> Iterator[CompressedPart]:
        return map(self.__getitem__, range(self._count))

    def append(self, part: CompressedPart) -> None:
        """Write the next part into a file."""
        write_part(self._directory / file_name(self._count), part)
        self._count += 1


_DESCRIBED = ("name", "structures", "errors", "removed", "scores", "encodings", "experts", "unreached")
"""The fields of a part that are stored as JSON."""


def file_name(number: int) -> str:
    """Return the name of a part's file; `number` counts all parts of the model from 0."""
    return f"part-{number:05d}.safetensors"


def write_part(path: Path, part: CompressedPart) -> None:
    """Write a part as one safetensors file, with everything but the tensors in its metadata."""
    write_tensors(path, part.tensors, {field: getattr(part, field) for field in _DESCRIBED})


def read_part(path: Path) -> CompressedPart:
    """Return the part that `write_part` wrote; its tensors are read on demand."""
    described, tensors = read_tensors(path)
    return CompressedPart(
        described["name"],
        described["structures"],
        tensors,
        described["errors"],
        tuple(described["removed"]),
        {int(block): score for block, score in described["scores"].items()},
        described["encodings"],
        {int(block): tuple(kept) for block, kept in described["experts"].items()},
        tuple(described["unreached"]),
    )
