"""The largest logits of the teacher on disk, a file for each window, for data that is passed over more than once.

Promise: a file is there complete or not at all; one that was cut short counts as missing.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.compression.training.losses import TopLogits, top_logits


@dataclass(frozen=True)
class TeacherCache:
    """A directory for one teacher; files are named for the window's tokens, `k` and `temperature`."""

    directory: Path
    k: int
    temperature: float

    def top(self, logits: Tensor) -> TopLogits:
        """What it keeps of logits [n, V]."""
        return top_logits(logits, self.k, self.temperature)

    def read(self, window: Tensor) -> TopLogits | None:
        """What was written for these token ids [T], on their device."""
        try:
            found = load_file(self._path(window), device=str(window.device))
        except (FileNotFoundError, SafetensorError):
            return None
        return TopLogits(found["values"], found["places"].long(), found["tail"])

    def write(self, window: Tensor, top: TopLogits) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._path(window)
        # Several processes may write the same window; each renames a file of its own.
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({"values": top.values, "places": top.places.int(), "tail": top.tail}, partial)
        partial.replace(path)

    def _path(self, window: Tensor) -> Path:
        said = f"{self.k} {self.temperature} ".encode() + window.to("cpu", torch.int64).numpy().tobytes()
        return self.directory / f"{hashlib.sha256(said).hexdigest()[:32]}.safetensors"
