"""JSON from strangers, bounded before it is parsed: by its bytes, by the values that it expands to, by its depth.

config = read_object(directory / "config.json", largest=2_000_000)
"""

import json
from pathlib import Path
from typing import Any

from modelpress.spec.errors import MalformedModel

MOST_VALUES = 8_000_000
"""Values that a file may expand to: a vocabulary of 300,000 tokens with as many merges has two million."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_bounded(path: Path, largest: int, name: str | None = None) -> bytes:
    """Return the content of a file of at most `largest` bytes. `name` is what messages call it, by default its name.

    Raises:
        MalformedModel: the file is larger, cannot be read, or is a pointer of Git LFS in place of the file itself.
    """
    shown = name or path.name
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise MalformedModel(f"{shown} cannot be read: {error.strerror}.") from error
    if len(content) > largest:
        raise MalformedModel(f"{shown} is larger than {largest} bytes.")
    if content.startswith(_LFS_POINTER):
        raise MalformedModel(f"{shown} is a pointer of Git LFS; put the file itself there, with 'git lfs pull'.")
    return content


def parse_object(
    content: bytes, name: str, most_values: int = MOST_VALUES, *, distinct_keys: bool = False
) -> dict[str, Any]:
    """Return the JSON object that `content` holds; `name` is the file's, for the message.

    `distinct_keys`: a key that appears twice in an object is an error, too; without, the last one counts.

    Raises:
        MalformedModel: it is no JSON object, begins with a byte order mark, nests too deep to be read or
            expands to more than `most_values` values.
    """
    if content.startswith(_BYTE_ORDER_MARK):
        raise MalformedModel(f"{name} begins with a byte order mark; save it as UTF-8 without one.")
    if sum(map(content.count, (b",", b"[", b"{"))) > most_values:
        raise MalformedModel(f"{name} holds more than {most_values} values.")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_distinct if distinct_keys else None)
    except (ValueError, RecursionError) as error:
        raise MalformedModel(f"{name} is not JSON that can be read: {str(error)[:200]}.") from error
    if not isinstance(value, dict):
        raise MalformedModel(f"{name} is not a JSON object.")
    return value


def read_object(
    path: Path, largest: int, most_values: int = MOST_VALUES, *, distinct_keys: bool = False
) -> dict[str, Any]:
    """Return the JSON object in a file of at most `largest` bytes. Raises MalformedModel as `parse_object` does."""
    return parse_object(read_bounded(path, largest), path.name, most_values, distinct_keys=distinct_keys)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict. Raises ValueError for a key that appears twice: readers differ in which counts."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key appears twice")
    return content
