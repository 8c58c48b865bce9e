"""Config and tensor shapes of a checkpoint that is not trusted, in a directory or on the hub.

`workers.compression.spec` reads the files and checks their format. This module adds what a service must refuse: links
that leave the directory, code in the repository, sizes that no file can have.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.sources.hub import Hub, RemoteFile, Repository
from app.sources.local import resolved
from workers.compression.spec.config import CONFIG_FILE, LARGEST_CONFIG, read_config
from workers.compression.spec.errors import MalformedModel, MissingWeights
from workers.compression.spec.headers import (
    INDEX_FILE,
    LARGEST_HEADER,
    LARGEST_INDEX,
    LENGTH_BYTES,
    WEIGHTS_FILE,
    read_safetensors_headers,
    read_weight_map,
)

COMPANION = re.compile(
    r"\w[\w.-]*\.(json|txt|model|jinja)|(?i:LICEN[SC]E|NOTICE|USE_POLICY)[\w.-]*|README\.md", re.ASCII
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")

LARGEST_FILE = 2**43  # what every common file system can hold, if only as a hole
FIRST_READ = 128 * 1024
READERS = 8


class NeedsRemoteCode(ValueError):
    """The checkpoint can only be opened by running code that it brings along."""


@dataclass(frozen=True)
class Checkpoint:
    """Config and tensor shapes of a model, {stored name: shape}."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_checkpoint(directory: Path) -> Checkpoint:
    """Return config and tensor shapes of `directory`, a real path.

    Raises:
        MissingWeights: there are no safetensors weights.
        MalformedModel: a file is missing, not of its format, contradicts another one, or is a link that leaves the
            directory.
        NeedsRemoteCode: the config asks for code of its own.
    """
    for path in sorted(directory.iterdir()):
        target = resolved(path)
        if target is not None and not target.is_relative_to(directory):
            raise MalformedModel(f"{path.name} is a link that leads out of the model's directory; put a copy there.")
    config = read_config_without_code(directory)
    try:
        return Checkpoint(config, read_safetensors_headers(directory))
    except MissingWeights as error:
        raise MissingWeights(absence([path.name for path in directory.iterdir()])) from error


def read_config_without_code(directory: Path) -> dict[str, Any]:
    """Return the model's config. Raises MalformedModel; NeedsRemoteCode where it asks for code of its own."""
    config = read_config(directory)
    if "auto_map" in config:
        raise NeedsRemoteCode(
            f"Its {CONFIG_FILE} asks for code of its own (auto_map), and remote code is not run here; send a model of "
            "an architecture that transformers itself has."
        )
    return config


def read_remote_checkpoint(hub: Hub, repository: Repository) -> Checkpoint:
    """Return config and tensor shapes of a model on the hub; only the beginnings of its weight files are read.

    They are laid out as a directory of sparse files of the true sizes, so that `read_checkpoint` judges them as it
    judges a local model. Raises what it raises, NotOnHub and HubUnavailable.
    """
    with TemporaryDirectory(prefix="modelpress-") as folder:
        directory = Path(folder).resolve()
        for name, largest in ((CONFIG_FILE, LARGEST_CONFIG), (INDEX_FILE, LARGEST_INDEX)):
            if (file := repository.file(name)) is not None:
                (directory / name).write_bytes(hub.read(repository, file, 0, largest + 1))
        if (directory / CONFIG_FILE).exists():
            read_config_without_code(directory)
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
    """Return the repository's weight files: those that the index in `directory` names, without an index the single one.

    A file that the repository lacks is left out; reading the directory then refuses the index. Raises MalformedModel.
    """
    weight_map = read_weight_map(directory)
    names = {WEIGHTS_FILE} if weight_map is None else set(weight_map.values())
    return tuple(file for file in repository.files if file.name in names)


def companion_files(repository: Repository) -> tuple[RemoteFile, ...]:
    """Return the files that are downloaded beside the weights: config, tokenizer, chat template, licence, model card.

    Code and pickles are never among them.
    """
    return tuple(file for file in repository.files if COMPANION.fullmatch(file.name))


def absence(names: list[str]) -> str:
    """Return the sentence that refuses a model with these files and no safetensors weights."""
    pickled = any(name.endswith(PICKLES) for name in names)
    found = (
        "Its weights are in a format other than safetensors that can run code when loaded"
        if pickled
        else "It has no safetensors weights"
    )
    return f"{found}; nothing else is read: send a model that has {WEIGHTS_FILE} or {INDEX_FILE}."
