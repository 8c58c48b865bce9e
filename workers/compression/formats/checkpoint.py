"""The written form of a compressed model: a directory that opens with stock transformers.

    package = write_package(source, parts, destination)

`source` is the original's directory and `parts` what `pipeline.compress` yields; `overlay` says what the package then
holds. With structures come a modelling file and `structures.py`, so that it opens with

    AutoModelForCausalLM.from_pretrained(destination, trust_remote_code=True)

and nothing of ours installed; without any it is an ordinary checkpoint of the original's architecture.

Promise: the directory appears complete, synced to disk and with its SHA256SUMS, or not at all. One tensor at a time is
in memory beside one part.
"""

import hashlib
import json
import os
import re
import shutil
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from workers.compression import structures as structures_module
from workers.compression.overlay import DTYPES, Overlay, Part
from workers.compression.spec.architectures import architecture_of
from workers.compression.spec.config import compressed_type
from workers.compression.spec.headers import INDEX_FILE, WEIGHTS_FILE

SHARD_BYTES = 5_000_000_000
MODELLING_FILE = "modeling_compressed.py"
STRUCTURES_FILE = "structures.py"
SUMS_FILE = "SHA256SUMS"

_TEMPLATE = Path(__file__).parent / "remote_code" / f"{MODELLING_FILE}.template"
_COMPANIONS = re.compile(
    r"tokenizer\.(json|model)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)"
    r"|merges\.txt|chat_template\.(jinja|json)|generation_config\.json|(?i:LICEN[CS]E|NOTICE|USE_POLICY)[\w.-]*",
    re.ASCII,
)
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Package:
    """A written package. `parameters` counts its stored numbers, `bytes` those of its weights."""

    directory: Path
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Entry:
    """A tensor that was written; `bytes` is its size in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def write_package(source: Path, parts: Iterable[Part], destination: Path, *, shard_bytes: int = SHARD_BYTES) -> Package:
    """Writes the package. The tensors of `parts` are read twice.

    Raises FileExistsError where `destination` is there already, MalformedModel where the source is not what it was,
    ValueError where some MLPs are narrower than others.
    """
    if destination.exists():
        raise FileExistsError(f"{destination} exists already")
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    overlay = Overlay.open(source, parts)
    structures = {overlay.written_name(name): form for name, form in overlay.structures.items()}
    config = overlay.config()
    read = overlay.tensors if structures else lambda: widely_named(overlay.tensors(), config)
    entries = write_weights(read, partial, shard_bytes)
    _write_config(config, structures, partial)
    copy_companions(source, partial)
    write_sums(partial)
    publish(partial, destination)
    return Package(destination, sum(_count(entry) for entry in entries), sum(entry.bytes for entry in entries))


def _count(entry: Entry) -> int:
    return torch.Size(entry.shape).numel()


def write_weights(
    read: Callable[[], Iterator[tuple[str, Tensor]]], directory: Path, shard_bytes: int = SHARD_BYTES
) -> list[Entry]:
    """Writes the shards, and an index where there is more than one. `read` is called twice, for the same tensors."""
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
    """The tensors of an ordinary checkpoint by names that old and new releases of transformers read: a head that was
    renamed keeps its old name in files.
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
    """Writes the header first and then one tensor after the other, which `safetensors.save_file` cannot."""
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
                raise RuntimeError(f"the parts changed while they were written: {entry.name} was expected, {name} came")
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _write_config(config: Mapping[str, Any], structures: Mapping[str, Mapping[str, Any]], directory: Path) -> None:
    if not structures:
        write_json(directory / "config.json", config)
        return
    model_type = config["model_type"]
    names = _class_names(model_type)
    own_type = compressed_type(model_type)
    module = MODELLING_FILE.removesuffix(".py")
    auto_map = {"AutoConfig": "Config", "AutoModel": "Base", "AutoModelForCausalLM": "CausalLM"}
    compressed = {
        **config,
        "model_type": own_type,
        "architectures": [f"Compressed{names['CausalLM']}"],
        "auto_map": {auto: f"{module}.Compressed{names[role]}" for auto, role in auto_map.items()},
        "compression": {"base_model_type": model_type, "structures": structures},
    }
    if architecture_of(config).head in structures:
        # The head reads factors or keeps a table of its own; transformers would look for one table to tie.
        compressed["tie_word_embeddings"] = False
    write_json(directory / "config.json", compressed)
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    architecture = architecture_of(config)
    code = template.substitute(names, model_type=own_type, prefix=architecture.base, head=architecture.head)
    (directory / MODELLING_FILE).write_text(code, encoding="utf-8")
    shutil.copyfile(structures_module.__file__, directory / STRUCTURES_FILE)


def _class_names(model_type: str) -> dict[str, str]:
    """What transformers calls the config, the base model and the causal language model of a type."""
    config_class = CONFIG_MAPPING[model_type]
    classes: dict[str, Any] = {
        "Config": config_class,
        "Base": MODEL_MAPPING[config_class],
        "CausalLM": MODEL_FOR_CAUSAL_LM_MAPPING[config_class],
    }
    return {role: found.__name__ for role, found in classes.items()}


def companions(source: Path) -> list[Path]:
    """Tokenizer, generation config, chat template, licence and notices of a model."""
    return [path for path in sorted(source.iterdir()) if path.is_file() and _COMPANIONS.fullmatch(path.name)]


def copy_companions(source: Path, directory: Path) -> None:
    for path in companions(source):
        shutil.copyfile(path, directory / path.name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """As transformers writes its configs."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_sums(directory: Path) -> None:
    """`SHA256SUMS` over all other files, those in subdirectories too, as `sha256sum --check` reads it."""
    lines, sums = [], directory / SUMS_FILE
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and path != sums):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(directory)}\n")
    sums.write_text("".join(lines), encoding="utf-8")


def publish(partial: Path, destination: Path) -> None:
    """Renames the finished directory once all of it is on the disk."""
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    partial.rename(destination)
    _sync(destination.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
