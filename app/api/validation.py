"""Explain what is wrong with a request, field by field, to the person who sent it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

from modelpress.contract.method import Location, field_path
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused
from modelpress.spec.methods import METHODS

LONGEST_NAME = 64
MOST_ERRORS = 20
SURROGATE = re.compile("[\ud800-\udfff]")


def field_errors(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return pydantic's errors as a problem document lists them: at most 20, and never with the value that was sent.

    For a list with a wrong item, pydantic also reports that the list is too short; only the item is listed here.
    """
    around = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    innermost = [error for error in errors if error["loc"] not in around]
    return [{"field": field_name(error["loc"]), "message": message(error)} for error in innermost[:MOST_ERRORS]]


def field_name(location: Location) -> str:
    """Return the dotted name of a field: `("body", "calibration", "length")` is `calibration.length`.

    The body itself is `body`.
    """
    return ".".join(printable(part) for part in field_path(location[1:])) or printable(location[0])


def printable(part: str | int) -> str:
    """Return a name from an untrusted body, cut to 64 characters and without lone surrogates."""
    return str(part)[:LONGEST_NAME].encode("utf-8", "backslashreplace").decode()


def message(error: Mapping[str, Any]) -> str:
    """Return what is wrong with a field."""
    if error["type"] == "extra_forbidden":
        return unknown_field(error["loc"][1:])
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return "send a JSON object"
    return str(error["msg"]).removeprefix("Value error, ")


def unknown_field(location: Location) -> str:
    """Return the message about a field that does not exist; it names the field that was probably meant."""
    known = fields_at(Recipe, location[:-1])
    name = str(location[-1])[:LONGEST_NAME]
    close = [field for field in known if name in field.split("_")] or get_close_matches(name, known, n=1)
    if close:
        return f"there is no such field; did you mean {close[0]!r}?"
    return f"there is no such field; there are {', '.join(known)}" if known else "there is no such field"


def fields_at(model: type[BaseModel], location: Location) -> tuple[str, ...]:
    """Return the names of the fields that the recipe has at `location`."""
    if len(location) == 2 and location[0] == "method" and location[1] in METHODS:
        return tuple(METHODS[str(location[1])].options.model_fields)
    for part in location:
        field = model.model_fields.get(str(part))
        section = None if field is None else section_of(field.annotation)
        if section is None:
            return ()
        model = section
    return tuple(model.model_fields)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section of the recipe that a field of this type may hold, or None."""
    kinds = (kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type))
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def refuse_unstorable(recipe: Recipe) -> None:
    """Refuse what PostgreSQL does not keep as it was sent: NUL characters, and halves of surrogate pairs.

    Raises:
        Refused: a text has one; the error names the field.
    """
    for field, text in texts(recipe.model_dump(mode="python")):
        if "\0" in text:
            raise Refused(field.removeprefix("."), "must not contain the NUL character")
        if SURROGATE.search(text):
            raise Refused(field.removeprefix("."), "must not contain half of a surrogate pair, which is no character")


def texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string in a JSON value, keys included, with the dotted name of its place."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield field, key
            yield from texts(item, f"{field}.{printable(key)}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from texts(item, f"{field}.{index}")
