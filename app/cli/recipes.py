"""From the words of a command to a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.contract.method import field_path
from app.contract.recipe import HUB_MODEL, Recipe
from app.errors import Refused


@dataclass(frozen=True)
class LocalModel:
    """A directory or GGUF file on this machine, and the directory that a service must be allowed to open it under."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path.parent

    @property
    def reference(self) -> str:
        return f"local:{self.path.name}"


def local_model(model: str) -> LocalModel | None:
    """The path that `model` is, or None where it is a reference that the service understands as it stands.

    What could be 'org/name' is one, even where a directory of that name exists: write './org/name' for the directory.
    Raises Refused when it is neither a reference nor an existing path.
    """
    plainly_path = model.startswith((".", "/", "~")) or model.endswith(".gguf")
    if not plainly_path and (model.startswith("local:") or HUB_MODEL.match(model)):
        return None
    path = Path(model).expanduser().resolve()
    if not path.exists():
        raise Refused("model", f"there is no {path}; send a path that exists, 'org/name[@revision]' or 'local:NAME'")
    return LocalModel(path)


def make_recipe(fields: dict[str, Any]) -> Recipe:
    """Raises Refused with the first field that is wrong."""
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in field_path(fault["loc"]))
        raise Refused(field, fault["msg"].removeprefix("Value error, ")) from error
