"""What was carried to a machine without a network: the weights in two halves, and a text in token ids."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from workers.compression.models.gguf import convert_gguf

HALVES = ("first", "second")
"""Folders, each of which is carried by a call of its own: together they would be too large."""

HALF, TOKENS = "model.gguf.part", "tokens.safetensors"


def checkpoint_of(carried: Path, scratch: Path) -> Path | None:
    """Return the checkpoint that both halves of the GGUF file make; None if a half is missing."""
    halves = [carried / folder / HALF for folder in HALVES]
    if not all(half.exists() for half in halves):
        return None
    file = scratch / "gguf" / "model.gguf"
    file.parent.mkdir()
    with file.open("wb") as whole:
        for half in halves:
            whole.write(half.read_bytes())
    convert_gguf(file, scratch / "smollm2")
    return scratch / "smollm2"


def tokens_of(carried: Path) -> dict[str, Tensor]:
    """Return the token ids [tokens] of each text by its name; none if they were not carried."""
    path = carried / HALVES[1] / TOKENS
    return load_file(path) if path.exists() else {}
