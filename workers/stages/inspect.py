"""Make sure that the model is what it says, and have it as a directory of safetensors and tokenizer."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app.sources.gguf import read_gguf
from modelpress.spec.architectures import is_registered
from modelpress.spec.config import read_config
from modelpress.spec.headers import read_safetensors_headers
from modelpress.spec.inventory import Inventory, inventory
from workers.compression.companions import open_tokenizer
from workers.compression.inferred.check import check_inferred
from workers.compression.models.checked import check_model, check_structure
from workers.compression.models.gguf import convert_gguf
from workers.stages import admission, names
from workers.stages.context import Context
from workers.stages.stage import Stage

CONVERTED = "model"


def run(context: Context, directory: Path) -> None:
    path = context.assignment.model_path
    if is_gguf(path):
        context.progress(0.1, "opening the GGUF file")
        described = read_gguf(path)
        convert_gguf(path, directory / CONVERTED, described.config.get("rope_scaling"), described.split)
        path = directory / CONVERTED
    check_structure(path)  # before the tokenizer, which transformers opens by the config
    open_tokenizer(path)
    context.progress(0.5, "reading the weights once")
    check_model(path)
    found = inventory_of(path)
    admission.admit(context, found, admission.fewest_parameters(found, context.assignment.recipe.ratios))
    if not is_registered(found.model_type):
        context.progress(0.9, "trying out what its architecture was inferred to be")
        check_inferred(path)
    context.progress(1.0, f"{found.model_type}, {found.blocks} blocks, {found.total_parameters:,} parameters")


def model_dir(context: Context) -> Path:
    """Return the directory in which the original lies as safetensors."""
    path = context.assignment.model_path
    return context.results[names.INSPECT] / CONVERTED if is_gguf(path) else path


def tokenizer_of(context: Context) -> PreTrainedTokenizerBase:
    """Return the original's tokenizer. Raises NoTokenizer."""
    return open_tokenizer(model_dir(context))


def model_inventory(context: Context) -> Inventory:
    """Return what the original holds."""
    return context.hold("inventory", lambda: inventory_of(model_dir(context)))


def inventory_of(directory: Path) -> Inventory:
    return inventory(read_config(directory), read_safetensors_headers(directory))


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


STAGE = Stage(names.INSPECT, run, once=True)
