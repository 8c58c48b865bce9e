"""Which text a dataset reference means, checked when a job is posted: `builtin:`, `local:` or `hub:`."""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.errors import UnknownDataset
from app.settings import SourceSettings
from app.sources.documents import (
    JSON_LINES,
    JSON_LINES_ENCODING,
    LONGEST_LINE,
    is_json_lines,
    parse_line,
    read_through,
)
from app.sources.hub import HUB_SECONDS, Hub, NotOnHub, RemoteFile, Repository
from app.sources.local import locate

HUB = "hub:"
BUILTIN = ("python-docs", "python-docs-test")
ROOTS_SETTING = "MODELPRESS_DATA_ROOTS"
PARQUET = ".parquet"
BEGINNINGS = {PARQUET: b"PAR1", JSON_LINES: b"{"}
"""What a file of a hub dataset begins with, by how its name ends; where there are both kinds, the first is taken."""
FIRST_READ = 64 * 1024
FIRST_BYTES = 256
FIRST_LINES = 1000
HUB_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<config>[\w.-]+))?/(?P<split>[\w.-]+)", re.ASCII
)


@dataclass(frozen=True)
class ResolvedText:
    reference: str
    kind: Literal["builtin", "local", "hub", "upload"]
    path: Path | None = None
    """The file of a local text; for the service alone, never for a client."""
    revision: str | None = None
    """The commit that a hub dataset is at."""
    repository: Repository | None = None
    files: tuple[RemoteFile, ...] = ()
    """The parquet files of the split, in order, or its .jsonl files."""


class TextSources:
    def __init__(self, settings: SourceSettings, hub_seconds: float = HUB_SECONDS) -> None:
        """Look in the places of `settings`; a hub that says nothing for `hub_seconds` is unavailable."""
        self.roots = settings.data_roots
        self.hub_enabled = settings.hub_enabled
        self.hub = Hub(settings.hub_endpoint, settings.hub_token, hub_seconds)

    def check(self, reference: str, field: str, revision: str | None = None) -> ResolvedText:
        """Find the text of a reference; `field` is where in the recipe it stands.

        `revision`: the commit of a hub dataset; None: the newest.

        Raises:
            UnknownDataset, OutsideRoots: there is no such text, or it is not text.
            HubUnavailable: the hub gave no usable answer within seconds.
        """
        scheme, _, name = reference.partition(":")
        match scheme:
            case "builtin":
                return self.check_builtin(reference, name, field)
            case "local":
                return self.check_local(reference, name, field)
            case "hub":
                return self.check_hub(reference, field, revision)
        raise UnknownDataset(field, "send 'builtin:NAME', 'local:NAME' or 'hub:org/name/config/split'")

    def check_builtin(self, reference: str, name: str, field: str) -> ResolvedText:
        if name not in BUILTIN:
            raise UnknownDataset(field, f"there is no builtin text of that name; there are: {', '.join(BUILTIN)}")
        return ResolvedText(reference, "builtin")

    def check_local(self, reference: str, name: str, field: str) -> ResolvedText:
        path = locate(name, self.roots, field=field, unknown=UnknownDataset, setting=ROOTS_SETTING)
        if path.suffix.lower() not in (".txt", JSON_LINES) or not path.is_file():
            raise UnknownDataset(field, f"'{reference}' is not a .txt or .jsonl file")
        if complaint := complaint_about(path):
            raise UnknownDataset(field, f"'{reference}' {complaint}")
        return ResolvedText(reference, "local", path=path)

    def check_hub(self, reference: str, field: str, revision: str | None) -> ResolvedText:
        if not self.hub_enabled:
            raise UnknownDataset(field, "this service does not use a hub; send 'builtin:NAME' or 'local:NAME'")
        name, config, split = hub_parts(reference, field)
        try:
            repository = self.hub.repository("dataset", name, revision)
            files = split_files(repository, config, split)
            if not files:
                raise UnknownDataset(
                    field,
                    f"'{name}' has no parquet or .jsonl files of that configuration and split; look at its file list",
                )
            suffix = Path(files[0].name).suffix
            # A listing can be public, the files not.
            beginning = self.hub.read(repository, files[0], 0, FIRST_BYTES)
        except NotOnHub as error:
            raise UnknownDataset(field, str(error)) from error
        if suffix == JSON_LINES:
            beginning = beginning.removeprefix(codecs.BOM_UTF8).lstrip()
        if not beginning.startswith(BEGINNINGS[suffix]):
            raise UnknownDataset(field, f"'{files[0].name}' of '{name}' is not a {suffix} file")
        return ResolvedText(reference, "hub", revision=repository.revision, repository=repository, files=files)


def hub_parts(reference: str, field: str) -> tuple[str, str | None, str]:
    """Repository, configuration and split of a 'hub:' reference."""
    parts = HUB_NAME.fullmatch(reference.removeprefix(HUB))
    if parts is None or ".." in reference:
        raise UnknownDataset(field, "send 'hub:org/name/config/split' or 'hub:org/name/split'")
    return parts["repository"], parts["config"], parts["split"]


def split_files(repository: Repository, config: str | None, split: str) -> tuple[RemoteFile, ...]:
    """`CONFIG/SPLIT-*.parquet` or `CONFIG/SPLIT/*.parquet`, or the same with `.jsonl`; without a configuration the
    folder is `data` or none."""
    folder = f"{re.escape(config)}/" if config else "(data/)?"
    for suffix in BEGINNINGS:
        pattern = re.compile(rf"{folder}{re.escape(split)}(-[\w.-]+|/[\w.-]+)?{re.escape(suffix)}", re.ASCII)
        found = [file for file in repository.files if pattern.fullmatch(file.name)]
        if found:
            return tuple(sorted(found, key=lambda file: file.name))
    return ()


def complaint_about(path: Path) -> str | None:
    """Return what is wrong with the beginning of a text file; the message completes 'the file …'."""
    with path.open("rb") as file:
        beginning = file.read(FIRST_READ)
    if not beginning.strip():
        return "is empty"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    return complaint_about_lines(path) if is_json_lines(path) else None


def complaint_about_whole(path: Path) -> str | None:
    """Return what is wrong with a text file, all of which is read; the message completes 'the file …'."""
    if (complaint := complaint_about(path)) is not None:
        return complaint
    try:
        read_through(path)
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    except ValueError as error:
        return str(error)
    return None


def complaint_about_lines(path: Path) -> str | None:
    """Return what is wrong with the first line of JSON lines that is not blank."""
    with path.open(encoding=JSON_LINES_ENCODING) as lines:
        try:
            for number in range(1, FIRST_LINES + 1):
                if (line := lines.readline(LONGEST_LINE)).strip():
                    parse_line(line, number)
                    return None
        except ValueError as error:
            return str(error)
    return f"has no JSON in its first {FIRST_LINES} lines"
