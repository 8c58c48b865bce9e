"""What was carried to a machine without a network: the weights in two halves, and texts in token ids."""

import shutil
from pathlib import Path

from bench.gpu.results import Figures
from bench.gpu.setting import Setting
from workers.compression.models.gguf import convert_gguf

HALVES = ("first", "second")
"""Folders, each of which is carried by a call of its own: together they would be too large."""

HALF = "model.gguf.part"


def weights(setting: Setting, found: Figures) -> None:
    """Put the weights and the texts together that were carried; without them, others at random take their place."""
    found["text_tokens"] = sum(len(tokens) for tokens in setting.texts.values())
    halves = [] if setting.carried is None else [setting.carried / folder / HALF for folder in HALVES]
    found["weights"] = "random"
    if not setting.checkpoint.exists() and halves and all(half.exists() for half in halves):
        _convert(halves, setting.checkpoint)
    if setting.checkpoint.exists():
        found["weights"] = "SmolLM2-135M"


def _convert(halves: list[Path], checkpoint: Path) -> None:
    """Write the checkpoint that both halves of the GGUF file make; it appears complete or not at all."""
    file = checkpoint.with_name("gguf") / "model.gguf"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as whole:
        for half in halves:
            whole.write(half.read_bytes())
    unfinished = checkpoint.with_name("converting")
    shutil.rmtree(unfinished, ignore_errors=True)
    convert_gguf(file, unfinished)
    unfinished.replace(checkpoint)
