"""Write the main checkpoint, plain, rounded or factored: a directory that opens with stock transformers.

    Safetensors().write(Overlay.open(original, parts), destination)

A model without factored layers is an ordinary checkpoint of the original's architecture. Where its matrices are in
codes, it is one of compressed-tensors, which engines such as vLLM open. One with factored layers, or with a rounded
embedding, includes a modelling file, and opens without any code of ours installed by

    AutoModelForCausalLM.from_pretrained(destination, trust_remote_code=True)

Promise: the directory appears complete, synced to disk and with its SHA256SUMS, or not at all. One tensor at a time is
in memory.
"""

import shutil
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from modelpress.spec.architectures import architecture_of
from modelpress.spec.codes import CODES
from modelpress.spec.config import compressed_type
from modelpress.spec.packing import NotStorable, storable
from workers.compression import structures as structures_module
from workers.compression.companions import copy_companions
from workers.compression.formats.files import (
    SHARD_BYTES,
    complete,
    widely_named,
    write_json,
    write_sums,
    write_weights,
)
from workers.compression.formats.packing import packed_tensors, quantisation_config
from workers.compression.formats.writer import Writer, Written
from workers.compression.overlay import Overlay

MODELLING_FILE = "modeling_compressed.py"
PACKED_FILE = "modeling_packed.py"
STRUCTURES_FILE = "structures.py"

SHAPE_BYTES = 16
"""Bytes of the shape that compressed-tensors stores beside a packed matrix."""

_REMOTE_CODE = Path(__file__).parent / "remote_code"


class Safetensors(Writer):
    """Writer of plain and factored checkpoints, with at most `shard_bytes` of weights, or one tensor, in a file."""

    def __init__(self, shard_bytes: int = SHARD_BYTES) -> None:
        self.shard_bytes = shard_bytes

    def overhead(self, overlay: Overlay) -> int:
        """Return the bytes of the shapes that the format stores beside matrices in codes."""
        return SHAPE_BYTES * len(overlay.shapes)

    def write(self, overlay: Overlay, destination: Path) -> Written:
        """Write the model as `Writer.write` says. Raises NotStorable for codes that it cannot hold."""
        _check(overlay)
        with complete(destination) as directory:
            entries = write_weights(lambda: _tensors(overlay), directory, self.shard_bytes)
            _describe(overlay, directory)
            copy_companions(overlay.original.directory, directory)
            write_sums(directory)
        return Written(destination, overlay.inventory.total_parameters, sum(entry.bytes for entry in entries))


def _check(overlay: Overlay) -> None:
    """Check that the format holds the matrices that are in codes. Raises NotStorable."""
    if overlay.codes and overlay.is_factored:
        raise NotStorable("a model with factored layers cannot have matrices in codes; store it with 16 bits")
    inventory = overlay.inventory
    for site in (*inventory.sites, inventory.embedding, inventory.head):
        code = overlay.codes.get(f"{site.name}.weight") if site else None
        if site and code and (reason := storable(CODES[code], site)):
            raise NotStorable(reason)


def _tensors(overlay: Overlay) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the checkpoint, always in the same order."""
    if overlay.is_factored:
        return overlay.tensors()
    return packed_tensors(overlay) if overlay.codes else widely_named(overlay.tensors(), overlay.config())


def _describe(overlay: Overlay, directory: Path) -> None:
    """Write config.json, and the modelling file that the model needs beside it, if any."""
    config = overlay.config()
    if overlay.is_factored:
        structures = {overlay.written_name(name): form for name, form in overlay.structures.items()}
        config = _with_structures(config, structures, directory)
    elif overlay.codes:
        config["quantization_config"] = quantisation_config(overlay)
        if f"{overlay.architecture.embedding}.weight" in overlay.codes:
            config = _with_packed_embedding(config, directory)
    write_json(directory / "config.json", config)


def _with_packed_embedding(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write the modelling file for a packed embedding, and return the config that names it."""
    names = _class_names(config["model_type"])
    module = _write_code(directory, PACKED_FILE, names)
    auto_map = {"AutoModel": "Base", "AutoModelForCausalLM": "CausalLM"}
    return {**config, "auto_map": {auto: f"{module}.Packed{names[role]}" for auto, role in auto_map.items()}}


def _with_structures(
    config: dict[str, Any], structures: Mapping[str, Mapping[str, Any]], directory: Path
) -> dict[str, Any]:
    """Write the modelling file for compact layers and `structures.py`, and return the config that names them."""
    model_type = config["model_type"]
    names = _class_names(model_type)
    own_type = compressed_type(model_type)
    architecture = architecture_of(config)
    module = _write_code(
        directory,
        MODELLING_FILE,
        {
            **names,
            "model_type": own_type,
            "base_type": model_type,
            "prefix": architecture.base,
            "head": architecture.head,
            "factored_tables": str(not structures.keys().isdisjoint((architecture.embedding, architecture.head))),
        },
    )
    shutil.copyfile(structures_module.__file__, directory / STRUCTURES_FILE)
    auto_map = {"AutoConfig": "Config", "AutoModel": "Base", "AutoModelForCausalLM": "CausalLM"}
    compressed = {
        **config,
        "model_type": own_type,
        "architectures": [f"Compressed{names['CausalLM']}"],
        "auto_map": {auto: f"{module}.Compressed{names[role]}" for auto, role in auto_map.items()},
        "compression": {"base_model_type": model_type, "structures": structures},
    }
    if architecture.head in structures:
        # The head reads the embedding's factors or has a table of its own, so transformers must not tie them.
        compressed["tie_word_embeddings"] = False
    return compressed


def _write_code(directory: Path, file: str, names: Mapping[str, str]) -> str:
    """Write a modelling file from its template, and return its module's name."""
    template = string.Template((_REMOTE_CODE / f"{file}.template").read_text(encoding="utf-8"))
    (directory / file).write_text(template.substitute(names), encoding="utf-8")
    return file.removesuffix(".py")


def _class_names(model_type: str) -> dict[str, str]:
    """Return the names of transformers' classes of a model type: `Config`, `Base` and `CausalLM`."""
    config_class = CONFIG_MAPPING[model_type]
    classes: dict[str, Any] = {
        "Config": config_class,
        "Base": MODEL_MAPPING[config_class],
        "CausalLM": MODEL_FOR_CAUSAL_LM_MAPPING[config_class],
    }
    return {role: found.__name__ for role, found in classes.items()}
