"""Text that needs no network: the documentation that comes with Python, in two parts with hardly a paragraph in common.

A document is a topic of `help()` or all docstrings of one module of the standard library. The text therefore belongs to
one version of Python, which is part of its file name wherever it is kept.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

TEST_EVERY = 4  # one document in so many is kept for evaluation
SHORTEST_DOCUMENT = 200
PASSAGE = 100  # characters of a paragraph that two documents have in common by more than chance


def training_documents() -> list[str]:
    """Three quarters of the documents: some 900,000 characters."""
    return mixed(text for index, text in enumerate(documents()) if index % TEST_EVERY != 1)


def evaluation_documents() -> list[str]:
    """Return the other quarter, less the few documents that repeat some of the first part: topics quote each other."""
    training = "\n\n".join(training_documents())
    others = (text for index, text in enumerate(documents()) if index % TEST_EVERY == 1)
    return mixed(text for text in others if not repeats(text, training))


def repeats(text: str, other: str) -> bool:
    """Return whether a paragraph of some length stands in both."""
    return any(len(paragraph) >= PASSAGE and paragraph in other for paragraph in text.split("\n\n"))


def mixed(texts: Iterable[str]) -> list[str]:
    """Return the documents in the order of their digests, so that the beginning is a fair sample of the whole."""
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


@cache
def documents() -> tuple[str, ...]:
    """Return the documents by kind and length, so that taking every fourth gives two parts of the same mixture."""
    return tuple(
        text.strip()
        for kind in (topics.values(), module_documentation())
        for text in sorted(kind, key=lambda text: (len(text), text), reverse=True)
        if len(text) >= SHORTEST_DOCUMENT
    )


def module_documentation() -> Iterator[str]:
    """Yield the docstrings of each public top-level module, read from its source without importing it."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[!_]*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
        yield "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))
