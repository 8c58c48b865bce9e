"""A model's files held against what transformers builds, and its numbers read once, before anything is computed."""

from pathlib import Path

import torch
from safetensors import safe_open

from modelpress.spec.config import original_config, read_config
from modelpress.spec.errors import MalformedModel, NotFinite
from modelpress.spec.headers import stored_tensors
from modelpress.spec.inventory import weights
from workers.compression.models.skeleton import check_complete, empty_model
from workers.compression.overlay import Overlay

NUMBERS_AT_A_TIME = 2**24


def check_structure(directory: Path) -> None:
    """Check that every tensor has its place in the model that config.json describes, without reading a weight.

    Raises:
        MalformedModel: transformers cannot build the model, or a tensor is missing, unexpected or of another shape.
    """
    config, _ = original_config(read_config(directory))
    check_complete(empty_model(config, torch.float32, torch.device("cpu")), config, stored_tensors(directory))


def check_model(directory: Path) -> None:
    """Check that every tensor has its place in the model that config.json describes, and holds finite numbers.

    Raises:
        MalformedModel: see `check_structure`.
        NotFinite: a tensor holds NaN or infinity, if only in the row of a token that no text uses.
    """
    check_structure(directory)
    config, _ = original_config(read_config(directory))
    tensors = stored_tensors(directory)
    for name in weights(config, tensors).values():
        # Opened anew each time: a mapping that stays open keeps every page that was read resident.
        with safe_open(tensors[name].file, framework="pt") as file:
            _require_finite(name, file.get_tensor(name))


def check_repeated_head(overlay: Overlay) -> None:
    """Check that a tied head that the files store is the embedding: other loaders would use it.

    Raises:
        MalformedModel: it differs.
    """
    original, architecture = overlay.original, overlay.architecture
    names = {architecture.canonical(name): name for name in original.tensors}
    repeated = names.get(f"{architecture.head}.weight")
    if overlay.inventory.head is not None or repeated is None:
        return
    embedding = original.names[f"{architecture.embedding}.weight"]
    if not torch.equal(original.tensor(repeated), original.tensor(embedding)):
        raise MalformedModel(
            f"config.json ties the head to the embedding, but the tensors {repeated} and {embedding} differ. "
            "Set tie_word_embeddings to false if the model has a head of its own."
        )


def _require_finite(name: str, tensor: torch.Tensor) -> None:
    for numbers in torch.split(tensor.flatten(), NUMBERS_AT_A_TIME):
        wrong = int(numbers.isfinite().logical_not().sum())
        if wrong:
            raise NotFinite(f"The tensor {name} holds NaN or infinity, at least {wrong} times.")
