"""Write the main checkpoint, plain or factored: a directory that opens with stock transformers.

    Safetensors().write(Overlay.open(original, parts), destination)

A model without factored layers is an ordinary checkpoint of the original's architecture. One with factored layers
includes a modelling file and `structures.py`, and opens without any code of ours installed by

    AutoModelForCausalLM.from_pretrained(destination, trust_remote_code=True)

Promise: the directory appears complete, synced to disk and with its SHA256SUMS, or not at all. One tensor at a time is
in memory.
"""

import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

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
from workers.compression.formats.writer import Writer, Written
from workers.compression.overlay import Overlay
from workers.compression.spec.architectures import architecture_of
from workers.compression.spec.config import compressed_type

MODELLING_FILE = "modeling_compressed.py"
STRUCTURES_FILE = "structures.py"

_TEMPLATE = Path(__file__).parent / "remote_code" / f"{MODELLING_FILE}.template"


class Safetensors(Writer):
    """Writer of plain and factored checkpoints, with at most `shard_bytes` of weights, or one tensor, in a file."""

    def __init__(self, shard_bytes: int = SHARD_BYTES) -> None:
        self.shard_bytes = shard_bytes

    def write(self, overlay: Overlay, destination: Path) -> Written:
        config = overlay.config()
        structures = {overlay.written_name(name): form for name, form in overlay.structures.items()}
        read = overlay.tensors if structures else lambda: widely_named(overlay.tensors(), config)
        with complete(destination) as directory:
            entries = write_weights(read, directory, self.shard_bytes)
            _write_config(config, structures, directory)
            copy_companions(overlay.original.directory, directory)
            write_sums(directory)
        return Written(destination, sum(entry.numbers for entry in entries), sum(entry.bytes for entry in entries))


def _write_config(config: Mapping[str, Any], structures: Mapping[str, Mapping[str, Any]], directory: Path) -> None:
    """Write config.json and, if there are `structures`, the modelling file and `structures.py`."""
    if not structures:
        write_json(directory / "config.json", config)
        return
    model_type = config["model_type"]
    names = _class_names(model_type)
    own_type = compressed_type(model_type)
    module = MODELLING_FILE.removesuffix(".py")
    auto_map = {"AutoConfig": "Config", "AutoModel": "Base", "AutoModelForCausalLM": "CausalLM"}
    compressed = {
        **config,
        "model_type": own_type,
        "architectures": [f"Compressed{names['CausalLM']}"],
        "auto_map": {auto: f"{module}.Compressed{names[role]}" for auto, role in auto_map.items()},
        "compression": {"base_model_type": model_type, "structures": structures},
    }
    if architecture_of(config).head in structures:
        # The head reads the embedding's factors or has a table of its own, so transformers must not tie them.
        compressed["tie_word_embeddings"] = False
    write_json(directory / "config.json", compressed)
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    architecture = architecture_of(config)
    code = template.substitute(names, model_type=own_type, prefix=architecture.base, head=architecture.head)
    (directory / MODELLING_FILE).write_text(code, encoding="utf-8")
    shutil.copyfile(structures_module.__file__, directory / STRUCTURES_FILE)


def _class_names(model_type: str) -> dict[str, str]:
    """Return the names of transformers' classes of a model type: `Config`, `Base` and `CausalLM`."""
    config_class = CONFIG_MAPPING[model_type]
    classes: dict[str, Any] = {
        "Config": config_class,
        "Base": MODEL_MAPPING[config_class],
        "CausalLM": MODEL_FOR_CAUSAL_LM_MAPPING[config_class],
    }
    return {role: found.__name__ for role, found in classes.items()}
