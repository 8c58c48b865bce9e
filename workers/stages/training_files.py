"""The file that a training is kept in while it is under way. Its tensors are read when they are asked for."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from workers.compression.training.training import Checkpoint
from workers.stages.part_files import StoredTensors

NUMBERS = ("step", "steps", "tokens", "losses", "restarts")


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    numbers = {field: getattr(checkpoint, field) for field in NUMBERS}
    save_file(dict(checkpoint.tensors), path, metadata={"training": json.dumps(numbers)})


def read_checkpoint(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        numbers = json.loads(file.metadata()["training"])
    numbers["losses"] = tuple(numbers["losses"])
    return Checkpoint(**numbers, tensors=StoredTensors(path))
