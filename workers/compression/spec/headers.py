"""Which tensors a directory of safetensors files holds, read from the headers alone: no torch, no tensor data.

Promise: whatever is returned lies inside the directory, in regular files whose headers describe each of their bytes
exactly once. The rules are those of the safetensors format: eight bytes of little-endian length, a JSON object, then
the tensors without holes.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from workers.compression.spec.errors import MalformedModel, MissingWeights

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_SHARD_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library itself
_LARGEST_INDEX = 64 * 2**20

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies and what its header says of it; `bytes` is its size in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_safetensors_headers(directory: Path, *, within: Path | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in `directory`, by name; see `stored_tensors`."""
    return {name: tensor.shape for name, tensor in stored_tensors(directory, within=within).items()}


def stored_tensors(directory: Path, *, within: Path | None = None) -> dict[str, StoredTensor]:
    """Every tensor in `directory` by name, from `model.safetensors` or from the shards that its index names.

    Files may be links as long as they end below `within`, by default the directory itself (the hub's cache links each
    snapshot to its blobs: pass the folder that holds both). Raises MissingWeights, MalformedModel.
    """
    root = directory.resolve()
    boundary = (within or directory).resolve()
    index = root / INDEX_FILE
    weight_map = _read_index(_inside(index, boundary)) if index.exists() else None
    names = sorted(set(weight_map.values())) if weight_map is not None else [WEIGHTS_FILE]
    if weight_map is None and not (root / WEIGHTS_FILE).exists():
        raise MissingWeights(f"There is no {WEIGHTS_FILE} and no {INDEX_FILE}; only safetensors weights can be opened.")

    tensors: dict[str, StoredTensor] = {}
    for name in names:
        for tensor_name, tensor in _read_header(_inside(root / name, boundary)).items():
            if tensor_name in tensors:
                raise MalformedModel(f"The tensor {tensor_name} is stored twice, the second time in {name}.")
            tensors[tensor_name] = tensor
    if weight_map is not None:
        _check_index(weight_map, tensors, root, boundary)
    return tensors


def _inside(path: Path, boundary: Path) -> Path:
    resolved = path.resolve()
    if not resolved.is_relative_to(boundary):
        raise MalformedModel(f"The file {path.name} is a link that leaves the model's directory.")
    if not resolved.is_file():
        raise MalformedModel(f"The file {path.name} is missing or is not a regular file.")
    return resolved


def _read_index(path: Path) -> dict[str, str]:
    if path.stat().st_size > _LARGEST_INDEX:
        raise MalformedModel(f"{INDEX_FILE} is larger than {_LARGEST_INDEX} bytes.")
    content = _parse(path.read_bytes(), INDEX_FILE)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedModel(f"{INDEX_FILE} has no weight_map.")
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise MalformedModel(
                f"{INDEX_FILE} names the shard {name!r}; a plain file name in the same directory is expected."
            )
    return weight_map


def _check_index(
    weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor], root: Path, boundary: Path
) -> None:
    files = {name: _inside(root / name, boundary) for name in set(weight_map.values())}
    for tensor_name, file_name in weight_map.items():
        if tensor_name not in tensors or tensors[tensor_name].file != files[file_name]:
            raise MalformedModel(
                f"{INDEX_FILE} places the tensor {tensor_name} in {file_name}, which does not hold it."
            )


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(file, size, path.name)
        header = _parse(file.read(length), path.name)
    header.pop("__metadata__", None)
    tensors: dict[str, StoredTensor] = {}
    extents: list[tuple[int, int]] = []
    for name, entry in header.items():
        tensors[name], extent = _tensor(path, name, entry)
        extents.append(extent)
    _check_extents(extents, size - _LENGTH_BYTES - length, path.name)
    return tensors


def _header_length(file: BinaryIO, size: int, name: str) -> int:
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise MalformedModel(f"{name} is too short to be a safetensors file.")
    length = int.from_bytes(prefix, "little")
    if length > min(_LARGEST_HEADER, size - _LENGTH_BYTES):
        raise MalformedModel(
            f"{name} announces a header of {length} bytes, more than it can hold; the file is damaged or cut short."
        )
    return length


def _parse(content: bytes, name: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise MalformedModel(f"{name} does not hold valid JSON where it should: {error}") from error
    if not isinstance(parsed, dict):
        raise MalformedModel(f"{name} does not hold a JSON object where it should.")
    return parsed


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key appears twice")
    return content


def _tensor(path: Path, name: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            dtype in ITEM_BYTES and _are_sizes(shape) and _are_sizes([begin, end])
        ):
            if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
                raise MalformedModel(
                    f"In {path.name} the tensor {name} has {end - begin} bytes, which does not fit its shape {shape}."
                )
            return StoredTensor(path, dtype, tuple(shape), end - begin), (begin, end)
    raise MalformedModel(f"The header of {path.name} does not describe the tensor {name} as safetensors does.")


def _are_sizes(values: Iterable[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _check_extents(extents: list[tuple[int, int]], size: int, name: str) -> None:
    position = 0
    for begin, end in sorted(extents):
        if begin != position:
            raise MalformedModel(
                f"The tensors in {name} overlap or leave holes at byte {min(begin, position)} of the data."
            )
        position = end
    if position != size:
        raise MalformedModel(f"The tensors in {name} fill {position} bytes of data, but the file holds {size}.")
