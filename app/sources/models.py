"""Which model a reference means, found out and checked when a job is posted: without torch, and without the weights."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, Literal

from app.errors import InvalidModel, TooManyModelsRead, UnknownModel
from app.settings import SourceSettings
from app.sources.checkpoint import read_checkpoint, read_remote_checkpoint
from app.sources.gguf import read_gguf
from app.sources.hub import HUB_SECONDS, Hub, NotOnHub, Repository
from app.sources.local import locate
from modelpress.errors import Refused
from modelpress.spec.companions import check_companions
from modelpress.spec.errors import CompressionError
from modelpress.spec.inventory import Inventory, inventory
from modelpress.spec.stored import check_agreement

FIELD = "model"
LOCAL = "local:"
ROOTS_SETTING = "MODELPRESS_MODEL_ROOTS"
LONGEST_REASON = 800
REFUSALS: dict[str, type[Refused]] = {kind.code: kind for kind in Refused.__subclasses__()}
"""The refusal of each code that an error of the compression library may carry: direct subclasses in `app.errors`."""
MOST_KNOWN = 64
"""Models whose headers are kept. Those of a large GGUF file take tens of milliseconds to read."""

READ_AT_ONCE = 3
"""Models whose files are read at a time: the largest headers and tokenizers that are read take a gigabyte of memory."""
TURN_SECONDS = 10.0

Identity = tuple[tuple[str, int, int, int, int], ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ResolvedModel:
    """A model that can be compressed, as its headers say. Each is itself alone, so that it can be a key."""

    reference: str
    """As the client sent it."""
    kind: Literal["hub", "directory", "gguf"]
    repository: str | None
    """'org/name' of a hub model."""
    revision: str | None
    """The commit that a hub model is pinned to."""
    path: Path | None
    """The place of a local model; for the service alone, never for a client."""
    config: dict[str, Any]
    inventory: Inventory


class ModelSources:
    def __init__(self, settings: SourceSettings, hub_seconds: float = HUB_SECONDS) -> None:
        """Look in the places of `settings`; a hub that says nothing for `hub_seconds` is unavailable."""
        self.roots = settings.model_roots
        self.hub_enabled = settings.hub_enabled
        self.hub = Hub(settings.hub_endpoint, settings.hub_token, hub_seconds)
        self.turns = BoundedSemaphore(READ_AT_ONCE)
        self.read = lru_cache(MOST_KNOWN)(self.read_in_turn)

    def resolve(self, reference: str) -> ResolvedModel:
        """Find the model of 'org/name[@revision]' or 'local:NAME' and read its headers.

        Raises:
            UnknownModel, OutsideRoots: there is nothing by that name that may be read.
            NoSafetensors, NoTokenizer, InvalidModel, UnsupportedModel: there is, and it cannot be compressed here.
            HubUnavailable: the hub gave no usable answer within seconds.
        """
        with explained(reference):
            if reference.startswith(LOCAL):
                return self.resolve_local(reference)
            return self.resolve_hub(reference)

    def resolve_local(self, reference: str) -> ResolvedModel:
        name = reference.removeprefix(LOCAL)
        path = locate(name, self.roots, field=FIELD, unknown=UnknownModel, setting=ROOTS_SETTING)
        return self.read(reference, path, self.roots, identity(path))

    def read_in_turn(self, reference: str, path: Path, roots: tuple[Path, ...], identity: Identity) -> ResolvedModel:
        """Return the model at a path. Raises TooManyModelsRead where others are read for too long."""
        if not self.turns.acquire(timeout=TURN_SECONDS):
            raise TooManyModelsRead("the files of other models are being read; post this again in a moment")
        try:
            return read_local(reference, path, roots)
        finally:
            self.turns.release()

    def resolve_hub(self, reference: str) -> ResolvedModel:
        if not self.hub_enabled:
            raise UnknownModel(FIELD, "this service does not use a model hub; send 'local:NAME' of a model it has")
        name, at, revision = reference.partition("@")
        if at and not revision:
            raise UnknownModel(
                FIELD, "there is nothing after the '@'; send a branch, a tag or a commit, or leave it out"
            )
        repository = self.hub.repository("model", name, revision or None)
        checkpoint = read_remote_checkpoint(self.hub, repository)
        return resolved_model(reference, "hub", checkpoint.config, checkpoint.shapes, repository=repository)


def read_local(reference: str, path: Path, roots: tuple[Path, ...]) -> ResolvedModel:
    """Return the model of a directory or a .gguf file."""
    if path.is_dir():
        checkpoint = read_checkpoint(path, roots)
        model = resolved_model(reference, "directory", checkpoint.config, checkpoint.shapes, path=path)
        check_companions(path, model.inventory.vocab_size)
        return model
    if path.suffix.lower() == ".gguf" and path.is_file():
        gguf = read_gguf(path)
        return resolved_model(reference, "gguf", gguf.config, gguf.shapes, path=path)
    raise InvalidModel(FIELD, f"'{reference}' is neither a directory with config.json and safetensors nor a .gguf file")


def identity(path: Path) -> Identity:
    """Return what changes whenever a file, or any file of a directory, is written or replaced."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = ((file.name, file.stat()) for file in files if file.exists())
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in found)


def resolved_model(
    reference: str,
    kind: Literal["hub", "directory", "gguf"],
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    *,
    path: Path | None = None,
    repository: Repository | None = None,
) -> ResolvedModel:
    found = inventory(config, shapes)
    check_agreement(config, shapes, found)
    return ResolvedModel(
        reference=reference,
        kind=kind,
        repository=repository.name if repository else None,
        revision=repository.revision if repository else None,
        path=path,
        config=config,
        inventory=found,
    )


def reason(error: Exception) -> str:
    """Return the message of an error, of which a file of a stranger may be a part, in a bounded length."""
    message = str(error)
    return message if len(message) <= LONGEST_REASON else f"{message[:LONGEST_REASON]} …"


@contextmanager
def explained(reference: str) -> Iterator[None]:
    """Turn what is found wrong with a model into a refusal of the field that names it."""
    try:
        yield
    except NotOnHub as error:
        raise UnknownModel(FIELD, str(error)) from error
    except CompressionError as error:
        raise REFUSALS[error.code](FIELD, f"'{reference}' cannot be used. {reason(error)}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        # Files of strangers hold what no check foresees; that they cannot be read is their fault and not the service's.
        log.exception("model_not_understood")
        raise InvalidModel(
            FIELD, f"'{reference}' cannot be used. Its config and its tensors make no sense together."
        ) from error
