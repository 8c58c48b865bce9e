"""The recipe's method: one of those that the registry has, by its name alone or with its options."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Union

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from workers.compression.spec.methods import METHODS, MethodOptions

Location = Sequence[str | int]


class _AnyMethod:
    """Makes a field of MethodOptions take the options of every registered method, told apart by `name`."""

    @staticmethod
    def _union() -> Any:
        options = tuple(method.options for method in METHODS.values())
        return Annotated[Union[options], Field(discriminator="name")]  # noqa: UP007

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_with_name, handler.generate_schema(self._union()))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names = {"type": "string", "enum": list(METHODS), "description": "a method with its options as they are"}
        return {"anyOf": [names, handler(schema)]}


def _with_name(method: Any) -> Any:
    """Return the form that holds options as well. Raises ValueError where no method is named."""
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
    """Return the place in a recipe where pydantic found a fault, without the name of the method that it chose."""
    if len(location) > 2 and location[0] == "method":
        return (location[0], *location[2:])
    return location
