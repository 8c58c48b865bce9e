"""Make sure that the model is what it says, and have it as a directory of safetensors and tokenizer."""

from pathlib import Path

from transformers import AutoTokenizer

from app.contract.codes import FailureCode
from workers.compression.models.gguf import convert_gguf
from workers.compression.spec.config import read_config
from workers.compression.spec.headers import read_safetensors_headers
from workers.compression.spec.inventory import Inventory, inventory
from workers.messages import AttemptFailed
from workers.stages import names
from workers.stages.context import Context
from workers.stages.stage import Stage

CONVERTED = "model"


def run(context: Context, directory: Path) -> None:
    path = context.assignment.model_path
    if is_gguf(path):
        context.progress(0.1, "opening the GGUF file")
        convert_gguf(path, directory / CONVERTED)
        path = directory / CONVERTED
    try:
        AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise AttemptFailed(
            FailureCode.NO_TOKENIZER, "the model has no tokenizer that transformers can open"
        ) from error
    found = inventory_of(path)
    context.progress(1.0, f"{found.model_type}, {found.blocks} blocks, {found.total_parameters:,} parameters")


def model_dir(context: Context) -> Path:
    """The original as a directory of safetensors."""
    path = context.assignment.model_path
    return context.results[names.INSPECT] / CONVERTED if is_gguf(path) else path


def model_inventory(context: Context) -> Inventory:
    """Return what the original holds."""
    return context.hold("inventory", lambda: inventory_of(model_dir(context)))


def inventory_of(directory: Path) -> Inventory:
    return inventory(read_config(directory), read_safetensors_headers(directory))


def is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf"


STAGE = Stage(names.INSPECT, run, lambda recipe, turn: 0.08, once=True)
