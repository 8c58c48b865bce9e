"""Config and tensor shapes of a checkpoint that is not trusted, in a directory or on the hub.

`modelpress.spec` reads the files and checks their format. This module adds what a service must refuse: links
that leave the directory, code in the repository, sizes that no file can have.
"""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from app.errors import HubUnavailable
from app.sources.hub import Hub, RemoteFile, Repository
from app.sources.local import resolved
from modelpress.spec.architectures import find_architecture
from modelpress.spec.companions import is_companion, require_tokenizer
from modelpress.spec.config import CONFIG_FILE, LARGEST_CONFIG, read_config
from modelpress.spec.errors import MalformedModel, MissingWeights, UnsupportedArchitecture
from modelpress.spec.headers import (
    INDEX_FILE,
    LARGEST_HEADER,
    LARGEST_INDEX,
    LENGTH_BYTES,
    WEIGHTS_FILE,
    boundary_of,
    check_headers,
    check_shards,
    read_weight_map,
    stored_tensors,
)
from modelpress.spec.stored import check_kinds

DESCRIPTION = re.compile(r"\w[\w.-]*\.(json|txt|model)|README\.md", re.ASCII)
"""Names of the files that are read here beside those that travel into the package: config, model card."""
ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")

LARGEST_COMPANION = 128_000_000
MOST_FILES = 10_000
LARGEST_FILE = 2**43  # what every common file system can hold, if only as a hole
FIRST_READ = 128 * 1024
READERS = 8
REMOTE_SECONDS = 30.0
"""How long the headers of a model on the hub may take. A client is answered sooner, but the place is held so long."""


class NeedsRemoteCode(UnsupportedArchitecture):
    """The checkpoint can only be opened by running code that it brings along."""

    code = "unsupported_architecture"


@dataclass(frozen=True)
class Checkpoint:
    """Config and tensor shapes of a model, {stored name: shape}."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_checkpoint(directory: Path, roots: tuple[Path, ...] = ()) -> Checkpoint:
    """Return config and tensor shapes of `directory`, a real path, without reading its companions.

    No file in it, however deep, may be a link out of the directory; in a snapshot of the hub's cache links may lead to
    the repository's blobs, where these lie below one of `roots`.

    Raises:
        MissingWeights: there are no safetensors weights.
        MalformedModel: a file is missing, not of its format, contradicts another one, or is a link that leaves the
            directory.
        NeedsRemoteCode: the config asks for code of its own.
    """
    check_links(directory, roots)
    config = read_config_without_code(directory)
    try:
        tensors = stored_tensors(directory)
    except MissingWeights as error:
        raise MissingWeights(absence([path.name for path in directory.iterdir()])) from error
    check_kinds(config, tensors)
    return Checkpoint(config, {name: tensor.shape for name, tensor in tensors.items()})


def check_links(directory: Path, roots: tuple[Path, ...]) -> None:
    """Raise MalformedModel for a link, at any depth, that leads out of where the model's files may lie."""
    boundary = boundary_of(directory)
    for number, path in enumerate(directory.rglob("*")):
        if number == MOST_FILES:
            raise MalformedModel(f"The model's directory holds more than {MOST_FILES} files.")
        target = resolved(path)
        if target is None or target.is_relative_to(directory):
            continue
        if not target.is_relative_to(boundary) or not any(target.is_relative_to(root) for root in roots):
            raise MalformedModel(
                f"{path.relative_to(directory)} is a link that leads out of the model's directory; put a copy there."
            )


def read_config_without_code(directory: Path) -> dict[str, Any]:
    """Return the model's config. Raises MalformedModel; NeedsRemoteCode where it asks for code of its own."""
    if not (directory / CONFIG_FILE).is_file():
        raise MalformedModel(missing_config(directory))
    config = read_config(directory)
    if "auto_map" in config and find_architecture(config.get("model_type")) is None:
        raise NeedsRemoteCode(
            f"Its {CONFIG_FILE} asks for code of its own (auto_map), and remote code is not run here; send a model of "
            "an architecture that transformers itself has."
        )
    for field in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if not isinstance(config.get(field), str | None) or "/" in (config.get(field) or ""):
            raise NeedsRemoteCode(f"Its {CONFIG_FILE} asks for code of somebody else ({field}); take that field out.")
    return config


def missing_config(directory: Path) -> str:
    """Return the message for a directory without config.json, which names what lies there in its place."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    if ADAPTER in names:
        return "It is an adapter, such as LoRA makes, and no model; merge it into the model that it was trained on."
    if found := next((name for name in names if name.lower().endswith(".gguf")), None):
        return f"There is no {CONFIG_FILE}, but a GGUF file; send the name of the file: '…/{found}'."
    return f"There is no {CONFIG_FILE}; send a model in transformers' format."


def read_remote_checkpoint(hub: Hub, repository: Repository) -> Checkpoint:
    """Return config and tensor shapes of a model on the hub; only the beginnings of its weight files are read.

    They are laid out as a directory of sparse files of the true sizes, so that `read_checkpoint` judges them as it
    judges a local model. Raises what it raises, NotOnHub and HubUnavailable.
    """
    with TemporaryDirectory(prefix="modelpress-") as folder:
        directory = Path(folder).resolve()
        described: tuple[tuple[str, int], ...] = ((CONFIG_FILE, LARGEST_CONFIG),)
        if repository.file(WEIGHTS_FILE) is None:
            described += ((INDEX_FILE, LARGEST_INDEX),)
        for name, largest in described:
            if (file := repository.file(name)) is not None:
                (directory / name).write_bytes(hub.read(repository, file, 0, largest + 1))
        if (directory / CONFIG_FILE).exists():
            read_config_without_code(directory)
        shards = weight_files(repository, directory)
        if not shards:
            raise MissingWeights(absence([file.name for file in repository.files]))
        check_shards(len(shards))
        allowance = Allowance(REMOTE_SECONDS)
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(partial(lay_out_header, hub, repository, directory, allowance), shards))
        checkpoint = read_checkpoint(directory)
        require_tokenizer({file.name for file in repository.files})
        return checkpoint


class Allowance:
    """Limits on reading the headers of a remote model, all files together: a number of bytes, and a deadline."""

    def __init__(self, seconds: float) -> None:
        self.deadline = monotonic() + seconds
        self.lock = threading.Lock()
        self.taken = 0

    def check_time(self) -> None:
        """Raise HubUnavailable where no time is left; whoever has asked has been answered long before."""
        if monotonic() > self.deadline:
            raise HubUnavailable("The hub sends the headers of this model too slowly; try again later.")

    def take(self, count: int) -> None:
        """Count so many bytes. Raises MalformedModel where all headers together have too many."""
        with self.lock:
            self.taken += count
            check_headers(self.taken)


def lay_out_header(hub: Hub, repository: Repository, directory: Path, allowance: Allowance, file: RemoteFile) -> None:
    """Write the header of a remote safetensors file into a sparse file of its size."""
    allowance.check_time()
    if file.bytes > LARGEST_FILE:
        raise MalformedModel(f"{file.name} is said to have {file.bytes} bytes; at most {LARGEST_FILE} are read.")
    content = hub.read(repository, file, 0, FIRST_READ)
    end = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    if end > LARGEST_HEADER:
        raise MalformedModel(f"{file.name} announces a header of more than {LARGEST_HEADER} bytes.")
    allowance.take(end)
    content += hub.read(repository, file, len(content), end)
    with (directory / file.name).open("wb") as sparse:
        sparse.write(content[:end])
        sparse.truncate(file.bytes)


def weight_files(repository: Repository, directory: Path) -> tuple[RemoteFile, ...]:
    """Return the repository's weight files: the single file, which transformers prefers, or those that the index in
    `directory` names.

    A file that the repository lacks is left out; reading the directory then refuses the index. Raises MalformedModel.
    """
    if (single := repository.file(WEIGHTS_FILE)) is not None:
        return (single,)
    names = set((read_weight_map(directory) or {}).values())
    return tuple(file for file in repository.files if file.name in names)


def companion_files(repository: Repository) -> tuple[RemoteFile, ...]:
    """Return the files that are downloaded beside the weights: config, tokenizer, chat templates, licence, model card.

    Code and pickles are never among them. Raises MalformedModel where one of them is larger than any of its kind.
    """
    files = tuple(file for file in repository.files if DESCRIPTION.fullmatch(file.name) or is_companion(file.name))
    for file in files:
        if file.bytes > LARGEST_COMPANION:
            raise MalformedModel(f"{file.name} has {file.bytes} bytes; at most {LARGEST_COMPANION} are read.")
    return files


def absence(names: list[str]) -> str:
    """Return the sentence that refuses a model with these files and no safetensors weights."""
    pickled = any(name.endswith(PICKLES) for name in names)
    found = (
        "Its weights are in a format other than safetensors that can run code when loaded"
        if pickled
        else "It has no safetensors weights"
    )
    return f"{found}; nothing else is read: send a model that has {WEIGHTS_FILE} or {INDEX_FILE}."
