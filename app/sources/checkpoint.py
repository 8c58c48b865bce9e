"""A checkpoint in transformers' form, read without torch and without trust: its config, and the shapes of its weights.

The same reading serves a directory, a repository on the hub before anything is downloaded, and the download itself.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.sources.hub import Hub, RemoteFile, Repository
from app.sources.local import resolved
from workers.compression.spec.errors import MalformedModel, MissingWeights
from workers.compression.spec.headers import read_safetensors_headers

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
COMPANION = re.compile(
    r"\w[\w.-]*\.(json|txt|model|jinja)|(?i:LICEN[SC]E|NOTICE|USE_POLICY)[\w.-]*|README\.md", re.ASCII
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")

LARGEST_CONFIG = 2_000_000
LARGEST_INDEX = 50_000_000
LARGEST_HEADER = 32_000_000
LARGEST_FILE = 2**43  # what every common file system can hold, if only as a hole
LENGTH_BYTES = 8
FIRST_READ = 128 * 1024
READERS = 8


class NeedsRemoteCode(ValueError):
    """The checkpoint can only be opened by running code, or decoding formats, that it brings along."""


@dataclass(frozen=True)
class Checkpoint:
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    """Name of each stored tensor -> its shape."""


def read_checkpoint(directory: Path) -> Checkpoint:
    """Config and tensor shapes of a directory (a real path), none of whose files may be a link that leads out of it.

    Raises:
        MissingWeights: there are no safetensors weights.
        MalformedModel: a file is missing, not of its format, or contradicts another one.
        NeedsRemoteCode: the config asks for code of its own, or the weights are quantised.
    """
    for path in sorted(directory.iterdir()):
        target = resolved(path)
        if target is not None and not target.is_relative_to(directory):
            raise MalformedModel(f"{path.name} is a link that leads out of the model's directory; put a copy there.")
    config = read_config(directory / CONFIG)
    try:
        return Checkpoint(config, read_safetensors_headers(directory))
    except MissingWeights as error:
        raise MissingWeights(absence([path.name for path in directory.iterdir()])) from error


def read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MalformedModel(f"There is no {CONFIG}; send a model in transformers' format.")
    if path.stat().st_size > LARGEST_CONFIG:
        raise MalformedModel(f"{CONFIG} is larger than {LARGEST_CONFIG} bytes.")
    config = json_object(path.read_bytes(), CONFIG)
    if "auto_map" in config:
        raise NeedsRemoteCode(
            f"Its {CONFIG} asks for code of its own (auto_map), and remote code is not run here; send a model of an "
            "architecture that transformers itself has."
        )
    if config.get("quantization_config"):
        raise NeedsRemoteCode("Its weights are quantised (quantization_config); send the original it was made from.")
    return config


def read_remote_checkpoint(hub: Hub, repository: Repository) -> Checkpoint:
    """As `read_checkpoint`, from the beginnings of the files alone.

    What is read is laid out as a directory of sparse files of the true sizes, so that a model on the hub and one on
    disk are judged by the same code. Raises also NotOnHub and HubUnavailable.
    """
    with TemporaryDirectory(prefix="modelpress-") as folder:
        directory = Path(folder).resolve()
        for name, largest in ((CONFIG, LARGEST_CONFIG), (INDEX, LARGEST_INDEX)):
            if (file := repository.file(name)) is not None:
                (directory / name).write_bytes(hub.read(repository, file, 0, largest + 1))
        if (directory / CONFIG).exists():
            read_config(directory / CONFIG)
        shards = weight_files(repository, directory)
        if not shards:
            raise MissingWeights(absence([file.name for file in repository.files]))
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(partial(lay_out_header, hub, repository, directory), shards))
        return read_checkpoint(directory)


def lay_out_header(hub: Hub, repository: Repository, directory: Path, file: RemoteFile) -> None:
    """Write the header of a remote safetensors file into a sparse file of its size."""
    if file.bytes > LARGEST_FILE:
        raise MalformedModel(f"{file.name} is said to have {file.bytes} bytes; at most {LARGEST_FILE} are read.")
    content = hub.read(repository, file, 0, FIRST_READ)
    end = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    if end > LARGEST_HEADER:
        raise MalformedModel(f"{file.name} announces a header of more than {LARGEST_HEADER} bytes.")
    content += hub.read(repository, file, len(content), end)
    with (directory / file.name).open("wb") as sparse:
        sparse.write(content[:end])
        sparse.truncate(file.bytes)


def weight_files(repository: Repository, directory: Path) -> tuple[RemoteFile, ...]:
    """The files that hold weights, as the index in `directory` says; without an index the single file.

    Names that are not plain names of the repository are left out; reading the directory then refuses the index.
    """
    index = directory / INDEX
    if not index.exists():
        single = repository.file(WEIGHTS)
        return () if single is None else (single,)
    places = json_object(index.read_bytes(), INDEX).get("weight_map")
    names = set(map(str, places.values())) if isinstance(places, dict) else set()
    return tuple(file for file in repository.files if file.name in names and SHARD.fullmatch(file.name))


def companion_files(repository: Repository) -> tuple[RemoteFile, ...]:
    """What is downloaded beside the weights: config, tokenizer, chat template, licence, model card. Never code, never
    pickles."""
    return tuple(file for file in repository.files if COMPANION.fullmatch(file.name))


def json_object(content: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MalformedModel(f"{name} is not JSON.") from error
    if not isinstance(value, dict):
        raise MalformedModel(f"{name} is not a JSON object.")
    return value


def absence(names: list[str]) -> str:
    pickled = any(name.endswith(PICKLES) for name in names)
    found = (
        "Its weights are in a format other than safetensors that can run code when loaded"
        if pickled
        else "It has no safetensors weights"
    )
    return f"{found}; nothing else is read: send a model that has {WEIGHTS} or {INDEX}."
