"""Read the `config.json` of an original or of a compressed package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelpress.spec.architectures import architecture_of
from modelpress.spec.errors import MalformedModel
from modelpress.spec.json_files import read_object

CONFIG_FILE = "config.json"
LARGEST_CONFIG = 2_000_000
"""The size in bytes above which a config is refused."""


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of the model's `config.json`.

    Raises MalformedModel if the file is missing, too large or not a JSON object.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise MalformedModel(f"The model has no {CONFIG_FILE}; send a model in transformers' format.")
    return read_object(path, LARGEST_CONFIG)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Return whether the output head shares the embedding's table.

    Raises UnsupportedArchitecture if the config's model type is not registered.
    """
    stated = config.get("tie_word_embeddings")
    return architecture_of(config).tied if stated is None else bool(stated)


def stated_size(config: Mapping[str, Any], *fields: str) -> int | None:
    """Return the value of the first of `fields` that the config states; None if it states none of them.

    Raises MalformedModel if the value is not a positive integer.
    """
    for field in fields:
        value = config.get(field)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise MalformedModel(f"The field {field} of config.json is {value!r}; a positive whole number is expected.")
        return value
    return None


def compressed_type(model_type: str) -> str:
    """Return the model type of a package with factored layers.

    It differs from the original's, because transformers ignores a package's own code for a type that it knows.
    """
    return f"compressed_{model_type}"


def original_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Mapping[str, Any]]]:
    """Return the config of the model that a package was made from, and the package's {module: structure}.

    The config of any other checkpoint is returned with no structures. Neither names code to run (`auto_map`): a
    supported architecture needs none.
    """
    compression = config.get("compression")
    if not isinstance(compression, Mapping) or config.get("model_type") != compressed_type(
        str(compression.get("base_model_type"))
    ):
        return {name: value for name, value in config.items() if name != "auto_map"}, {}
    original = {name: value for name, value in config.items() if name not in ("compression", "auto_map")}
    return original | {"model_type": compression["base_model_type"]}, compression["structures"]
