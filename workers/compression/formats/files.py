"""Write the files of a checkpoint: weights in shards, config, tokenizer, licence and digests; all of them or none.

with complete(destination) as directory:          # appears under its name when all is written
    write_weights(read, directory)
    write_json(directory / "config.json", config)
    copy_companions(source, directory)
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelpress.spec.architectures import architecture_of
from modelpress.spec.files import file_sha256, sync
from modelpress.spec.headers import INDEX_FILE, WEIGHTS_FILE
from workers.compression.overlay import DTYPES

SHARD_BYTES = 5_000_000_000
"""The most bytes of weights in one file, unless a single tensor is larger."""

SUMS_FILE = "SHA256SUMS"

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A written tensor. `dtype` is safetensors' name of it; `bytes` is the tensor's size in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def numbers(self) -> int:
        """Return the number of elements of the tensor."""
        return torch.Size(self.shape).numel()


@contextmanager
def complete(destination: Path) -> Iterator[Path]:
    """Give a directory to write into, which is renamed to `destination` once all of it is on disk.

    After an exception `destination` does not exist. Raises FileExistsError if it exists before.
    """
    if destination.exists():
        raise FileExistsError(f"{destination} exists already; remove it or choose another directory")
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    publish(partial, destination)


def write_weights(
    read: Callable[[], Iterator[tuple[str, Tensor]]], directory: Path, shard_bytes: int = SHARD_BYTES
) -> list[Entry]:
    """Write the tensors in shards of at most `shard_bytes`, with an index if there are several, and return them.

    `read` is called twice and must yield the same (name, tensor) pairs in the same order. Raises RuntimeError if it
    does not.
    """
    entries = [_entry(name, tensor) for name, tensor in read()]
    shards = _into_shards(entries, shard_bytes)
    tensors = read()
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / name, shard, tensors)
        weight_map.update({entry.name: name for entry in shard})
    if len(shards) > 1:
        total = sum(entry.bytes for entry in entries)
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return entries


def widely_named(tensors: Iterator[tuple[str, Tensor]], config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an ordinary checkpoint by names that old and new releases of transformers can read.

    An output head that transformers has renamed keeps its old name in files.
    """
    architecture = architecture_of(config)
    renamed = f"{architecture.head}."
    for name, tensor in tensors:
        if architecture.old_head and name.startswith(renamed):
            yield f"{architecture.old_head}.{name.removeprefix(renamed)}", tensor
        else:
            yield name, tensor


def _entry(name: str, tensor: Tensor) -> Entry:
    return Entry(name, _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.element_size())


def _into_shards(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """Return the entries in order, divided into shards of at most `limit` bytes or a single entry."""
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.bytes
    return shards


def _write_shard(path: Path, shard: Sequence[Entry], tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write a safetensors file tensor by tensor, so that one is in memory; `safetensors.save_file` needs all.

    Raises RuntimeError if `tensors` does not yield what `shard` lists.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in shard:
        offsets = [position, position + entry.bytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        position += entry.bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry, (name, tensor) in zip(shard, tensors, strict=False):
            if _entry(name, tensor) != entry:
                raise RuntimeError(f"the parts changed while they were written: expected {entry.name}, found {name}")
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the indentation that transformers uses for its configs."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_sums(directory: Path) -> None:
    """Write `SHA256SUMS` with the digests of all other files below `directory`, as `sha256sum --check` reads it."""
    sums = directory / SUMS_FILE
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != sums)
    lines = [f"{file_sha256(path)}  {path.relative_to(directory)}\n" for path in files]
    sums.write_text("".join(lines), encoding="utf-8")


def publish(partial: Path, destination: Path) -> None:
    """Sync the files of `partial` to disk, then rename it to `destination`."""
    for path in partial.rglob("*"):
        sync(path)
    sync(partial)
    partial.rename(destination)
    sync(destination.parent)
