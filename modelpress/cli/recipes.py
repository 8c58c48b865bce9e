"""Build a recipe from the arguments of a command."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from modelpress.contract.fields import HUB_MODEL
from modelpress.contract.method import field_path
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused


@dataclass(frozen=True)
class LocalModel:
    """A model directory or GGUF file on this machine."""

    path: Path

    @property
    def root(self) -> Path:
        """Return the directory that the service must have among its model roots."""
        return self.path.parent

    @property
    def reference(self) -> str:
        """Return the model's name in a recipe."""
        return f"local:{self.path.name}"


def local_model(model: str) -> LocalModel | None:
    """Return the local path that `model` names, or None for a reference that the service resolves.

    'org/name' is always a hub reference, even if such a directory exists: write './org/name' for the directory.

    Raises:
        Refused: `model` is neither a reference nor an existing path.
    """
    plainly_path = model.startswith((".", "/", "~")) or model.endswith(".gguf")
    if not plainly_path and (model.startswith("local:") or HUB_MODEL.match(model)):
        return None
    path = Path(model).expanduser().resolve()
    if not path.exists():
        raise Refused("model", f"there is no {path}; send a path that exists, 'org/name[@revision]' or 'local:NAME'")
    return LocalModel(path)


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the fields of a recipe in a file of YAML or JSON, which is YAML, too.

    Raises:
        Refused: the file is no object.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused("--recipe", f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise Refused("--recipe", f"{path} holds no recipe; write 'model: org/name' and 'target_ratio: 4'")
    return fields


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the changes made to them, section by section."""
    together = dict(fields)
    for name, change in changes.items():
        before = together.get(name)
        together[name] = merged(before, change) if isinstance(before, dict) and isinstance(change, dict) else change
    return together


def pairs_of(texts: Iterable[str], option: str, example: str) -> dict[str, str]:
    """Return pairs such as 'team=search' as a dictionary.

    Raises:
        Refused: a text is no pair; it names the command line's `option` and gives an example.
    """
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise Refused(option, f"{text!r} has no value; send NAME=VALUE, such as {example}")
        pairs[key] = value
    return pairs


def make_recipe(fields: dict[str, Any]) -> Recipe:
    """Return the recipe with these fields.

    Raises:
        Refused: a field is wrong; it names the first one.
    """
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in field_path(fault["loc"]))
        raise Refused(field, fault["msg"].removeprefix("Value error, ")) from error
