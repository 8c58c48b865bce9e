"""Read names, shapes and files of the tensors in a directory of safetensors files, from the headers alone.

Promise: every tensor returned is inside the directory, in a regular file whose header describes each of its bytes
exactly once. The safetensors format requires this: eight bytes with the header's length (little-endian), a JSON object,
then the tensors without holes.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from modelpress.spec.errors import MalformedModel, MissingWeights
from modelpress.spec.json_files import parse_object, read_object

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

SHARD_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
LENGTH_BYTES = 8
"""The number of bytes at the beginning of a file that state the length of its header."""
LARGEST_HEADER = 32_000_000
"""The size in bytes above which a header is refused."""
LARGEST_HEADERS = 64_000_000
"""The size in bytes of all headers of a model above which it is refused."""
MOST_SHARDS = 1000
"""The most files that a model's weights may be spread over."""
LARGEST_INDEX = 32_000_000
"""The size in bytes above which an index is refused."""
MOST_HEADER_VALUES = 2_000_000
"""The most values that a header or an index may expand to."""
LONGEST_NAME = 256
"""The most characters of a tensor's name."""

_LONG_NUMBER = re.compile(r"\d{7}")

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """The description of a tensor in a header. `file` holds it, `dtype` is safetensors' name, `bytes` is its size."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_safetensors_headers(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of every tensor in `directory`. Raises what `stored_tensors` raises."""
    return {name: tensor.shape for name, tensor in stored_tensors(directory).items()}


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return {name: description} of the tensors in `model.safetensors`, or else in the shards that the index lists.

    Where both are there, transformers opens the former, too.

    Raises:
        MissingWeights: if the directory has neither `model.safetensors` nor an index.
        MalformedModel: if a file is a link that leaves `boundary_of(directory)`, is not in the safetensors format, or
            contradicts the index.
    """
    root = directory.resolve()
    weight_map = None if (root / WEIGHTS_FILE).exists() else read_weight_map(root)
    names = sorted(set(weight_map.values())) if weight_map is not None else [WEIGHTS_FILE]
    if weight_map is None and not (root / WEIGHTS_FILE).exists():
        raise MissingWeights(f"There is no {WEIGHTS_FILE} and no {INDEX_FILE}; only safetensors weights can be opened.")

    check_shards(len(names))
    files = {name: _inside(root, name) for name in names}
    check_headers(sum(map(_announced, files.values())))
    tensors: dict[str, StoredTensor] = {}
    for name, file in files.items():
        for tensor_name, tensor in _read_header(file).items():
            if tensor_name in tensors:
                raise MalformedModel(f"The tensor {tensor_name} is stored twice, the second time in {name}.")
            tensors[tensor_name] = tensor
    if weight_map is not None:
        _check_index(weight_map, tensors, root)
    return tensors


def check_shards(count: int) -> None:
    """Raise MalformedModel for more files of weights than are read."""
    if count > MOST_SHARDS:
        raise MalformedModel(f"The weights are spread over {count} files; at most {MOST_SHARDS} are read.")


def check_headers(announced: int) -> None:
    """Raise MalformedModel where all headers of a model together announce too many bytes."""
    if announced > LARGEST_HEADERS:
        raise MalformedModel(f"The headers of the weights have over {LARGEST_HEADERS} bytes together.")


def boundary_of(directory: Path) -> Path:
    """Return the folder that links in a model's directory may lead into: the directory itself.

    Of a snapshot in the hub's cache (`models--ORG--NAME/snapshots/COMMIT`) it is the repository's folder, which holds
    the blobs, too.
    """
    root = directory.resolve()
    repository = root.parent.parent
    in_cache = root.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if in_cache else root


def read_weight_map(directory: Path) -> dict[str, str] | None:
    """Return {tensor: file name} from the index in `directory`, or None if it has no index.

    Raises MalformedModel if the index has no such map, or lists anything but plain names of safetensors files.
    """
    root = directory.resolve()
    if not (root / INDEX_FILE).exists():
        return None
    content = read_object(_inside(root, INDEX_FILE), LARGEST_INDEX, MOST_HEADER_VALUES, distinct_keys=True)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedModel(f"{INDEX_FILE} has no weight_map.")
    for name in weight_map.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise MalformedModel(
                f"{INDEX_FILE} names the shard {name!r}; a plain file name in the same directory is expected."
            )
    return weight_map


def _inside(root: Path, name: str) -> Path:
    """Return the path of a regular file in the directory `root`. Raises MalformedModel if it is missing or outside."""
    path = (root / name).resolve()
    if not path.is_relative_to(boundary_of(root)):
        raise MalformedModel(f"The file {name} is a link that leaves the model's directory.")
    if not path.is_file():
        raise MalformedModel(f"The file {name} is missing or is not a regular file.")
    return path


def _check_index(weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor], root: Path) -> None:
    """Raise MalformedModel unless every tensor of the index is in the file that it states."""
    files = {name: _inside(root, name) for name in set(weight_map.values())}
    for tensor_name, file_name in weight_map.items():
        if tensor_name not in tensors or tensors[tensor_name].file != files[file_name]:
            raise MalformedModel(
                f"{INDEX_FILE} places the tensor {tensor_name} in {file_name}, which does not hold it."
            )


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name. Raises MalformedModel if it is not in the safetensors format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(file, size, path.name)
        header = parse_object(file.read(length), path.name, MOST_HEADER_VALUES, distinct_keys=True)
    header.pop("__metadata__", None)
    tensors: dict[str, StoredTensor] = {}
    extents: list[tuple[int, int]] = []
    for name, entry in header.items():
        tensors[name], extent = _tensor(path, name, entry)
        extents.append(extent)
    _check_extents(extents, size - LENGTH_BYTES - length, path.name)
    return tensors


def _announced(path: Path) -> int:
    """Return the length of its header that a file states, at most the file's own."""
    with path.open("rb") as file:
        return min(int.from_bytes(file.read(LENGTH_BYTES), "little"), path.stat().st_size)


def _header_length(file: BinaryIO, size: int, name: str) -> int:
    """Read the header's length in bytes. Raises MalformedModel if the file, of `size` bytes, cannot hold it."""
    prefix = file.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise MalformedModel(f"{name} is too short to be a safetensors file.")
    length = int.from_bytes(prefix, "little")
    if length > min(LARGEST_HEADER, size - LENGTH_BYTES):
        raise MalformedModel(
            f"{name} announces a header of {length} bytes, more than it can hold; the file is damaged or cut short."
        )
    return length


def _tensor(path: Path, name: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    """Return a header's tensor and its first and last byte in the data. Raises MalformedModel for an invalid entry."""
    if len(name) > LONGEST_NAME or not name.isascii() or _LONG_NUMBER.search(name):
        raise MalformedModel(f"{path.name} names a tensor as no architecture does: {name[:80]!r}.")
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
    """Raise MalformedModel unless the tensors fill the `size` bytes of data without holes or overlaps."""
    position = 0
    for begin, end in sorted(extents):
        if begin != position:
            raise MalformedModel(
                f"The tensors in {name} overlap or leave holes at byte {min(begin, position)} of the data."
            )
        position = end
    if position != size:
        raise MalformedModel(f"The tensors in {name} fill {position} bytes of data, but the file holds {size}.")
