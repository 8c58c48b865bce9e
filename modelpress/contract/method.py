"""The `method` of a recipe: the name of a registered method, or an object with its name and options."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Union

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from modelpress.spec.methods import METHODS, MethodOptions

Location = Sequence[str | int]


class _AnyMethod:
    """Makes pydantic validate a MethodOptions field as the options of the method that `name` selects."""

    @staticmethod
    def _union() -> Any:
        options = tuple(method.options for method in METHODS.values())
        return Annotated[Union[options], Field(discriminator="name")]  # noqa: UP007 - of a list

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_with_name, handler.generate_schema(self._union()))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names = {"type": "string", "enum": list(METHODS), "description": "a method with its default options"}
        return {"anyOf": [names, handler(schema)]}


def _with_name(method: Any) -> Any:
    """Return the method as an object with its name.

    Raises:
        ValueError: no registered method is named.
    """
    if isinstance(method, MethodOptions):
        return method
    form = {"name": method} if isinstance(method, str) else method
    name = form.get("name") if isinstance(form, dict) else None
    if not isinstance(name, str):
        raise ValueError('send the name of a method, or an object such as {"name": "width", "key_value_heads": 2}')
    if name not in METHODS:
        close = get_close_matches(name[:64], METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(METHODS)}"
        raise ValueError(f"there is no such method; {hint}")
    return form


MethodChoice = Annotated[MethodOptions, _AnyMethod()]
"""A method and its options: `"width"`, or `{"name": "width", "key_value_heads": 2}`."""


def field_path(location: Location) -> Location:
    """Return the place of a fault in a recipe as a client knows it, without the method's name that pydantic inserts."""
    if len(location) > 2 and location[0] == "method":
        return (location[0], *location[2:])
    return location
