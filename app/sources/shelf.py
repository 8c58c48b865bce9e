"""Which `local:` names there are: what lies under the operator's directories, by its name alone and unopened."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from app.sources.local import LONGEST_NAME
from app.sources.models import LOCAL

MOST_NAMES = 1000
MOST_LOOKED_AT = 100_000
"""Files and directories below a root; a larger one would hold a thread for minutes each time it is asked for."""
DEEPEST = 4
CONFIG, GGUF = "config.json", ".gguf"
TEXTS = (".txt", ".jsonl")


def model_names(roots: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the references of the directories with a config.json and the .gguf files, sorted."""

    def is_model(path: Path) -> bool:
        return (path / CONFIG).is_file() if path.is_dir() else path.suffix.lower() == GGUF

    return references(roots, is_model)


def text_names(roots: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the references of the .txt and .jsonl files, sorted."""
    return references(roots, lambda path: path.suffix.lower() in TEXTS and path.is_file())


def references(roots: tuple[Path, ...], wanted: Callable[[Path], bool]) -> tuple[str, ...]:
    """Return the references of what is wanted; of very many, some."""
    names = {name for root in roots for name in islice(names_below(root, wanted), MOST_NAMES)}
    return tuple(f"{LOCAL}{name}" for name in sorted(names)[:MOST_NAMES])


def names_below(root: Path, wanted: Callable[[Path], bool]) -> Iterator[str]:
    """Yield the names below a directory. Links that lead out of it are left out, as they would be refused."""
    looked_at = 0
    for folder, folders, files in os.walk(root):
        looked_at += len(folders) + len(files)
        if looked_at > MOST_LOOKED_AT:
            return
        here = Path(folder)
        for entry in (*folders, *files):
            path = here / entry
            name = path.relative_to(root).as_posix()
            plain = len(name) <= LONGEST_NAME and name.isprintable() and not entry.startswith(".")
            if plain and wanted(path) and path.resolve().is_relative_to(root):
                yield name
        deeper = len(here.relative_to(root).parts) + 1 < DEEPEST
        folders[:] = [each for each in folders if deeper and not each.startswith(".") and not wanted(here / each)]
