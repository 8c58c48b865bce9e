"""The file that a finished part of a compressed model is kept in."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workers.compression.parts import CompressedPart


def write_part(path: Path, part: CompressedPart) -> None:
    described = {field: getattr(part, field) for field in ("name", "structures", "errors", "removed", "scores")}
    save_file(dict(part.tensors), path, metadata={"index": str(part.index), "part": json.dumps(described)})


def read_part(path: Path) -> CompressedPart:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    described = json.loads(metadata["part"])
    return CompressedPart(
        int(metadata["index"]),
        described["name"],
        described["structures"],
        StoredTensors(path),
        described["errors"],
        tuple(described["removed"]),
        {int(block): score for block, score in described["scores"].items()},
    )


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file by name, each read when it is asked for: many parts may be known and none be in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.names = tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
