"""Read JSON objects from a model's files, up to a size limit."""

import json
from pathlib import Path
from typing import Any

from workers.compression.spec.errors import MalformedModel


def read_object(path: Path, largest: int) -> dict[str, Any]:
    """Return the JSON object in the file `path`.

    Raises MalformedModel if the file has more than `largest` bytes or does not hold a JSON object.
    """
    if path.stat().st_size > largest:
        raise MalformedModel(f"{path.name} is larger than {largest} bytes.")
    return parse_object(path.read_bytes(), path.name)


def parse_object(content: bytes, name: str, *, distinct_keys: bool = False) -> dict[str, Any]:
    """Return the JSON object that `content` encodes; `name` is the file's name for error messages.

    Raises MalformedModel if `content` is no JSON object or, with `distinct_keys`, if an object has a key twice.
    """
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_distinct if distinct_keys else None)
    except (ValueError, RecursionError) as error:
        raise MalformedModel(f"{name} does not hold valid JSON where it is expected: {error}") from error
    if not isinstance(parsed, dict):
        raise MalformedModel(f"{name} does not hold a JSON object where one is expected.")
    return parsed


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary. Raises ValueError if a key appears twice."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key appears twice")
    return content
