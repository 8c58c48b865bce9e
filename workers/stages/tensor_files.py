"""Safetensors files with a few fields of JSON beside the tensors."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FIELDS = "fields"
"""The key of the file's metadata whose value is the JSON."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
    """Write the tensors and the fields, which JSON must be able to express, as one file."""
    save_file(dict(tensors), path, metadata={FIELDS: json.dumps(dict(fields))})


def read_tensors(path: Path) -> tuple[dict[str, Any], "StoredTensors"]:
    """Return the fields and the tensors that `write_tensors` wrote; the tensors are read on demand."""
    with safe_open(path, framework="pt") as file:
        fields = json.loads(file.metadata()[FIELDS])
    return fields, StoredTensors(path)


class StoredTensors(Mapping[str, Tensor]):
    """A mapping that reads each tensor of a safetensors file on demand, so that many parts can be open cheaply."""

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
