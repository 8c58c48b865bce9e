"""The teacher's largest logits on disk, one file per window, for text that is trained on more than once.

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
    """The `k` largest logits of one teacher, softened by `temperature`, in the files of a directory.

    A file is named by a hash of the window's token ids, `k` and `temperature`.
    """

    directory: Path
    k: int
    temperature: float

    def top(self, logits: Tensor) -> TopLogits:
        """Return what the cache keeps of logits [n, V]."""
        return top_logits(logits, self.k, self.temperature)

    def read(self, window: Tensor) -> TopLogits | None:
        """Return what was written for token ids [T], on their device; None if there is nothing intact."""
        try:
            found = load_file(self._path(window), device=str(window.device))
        except (FileNotFoundError, SafetensorError):
            return None
        return TopLogits(found["values"], found["places"].long(), found["tail"])

    def write(self, window: Tensor, top: TopLogits) -> None:
        """Keep the logits of token ids [T]."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._path(window)
        # Several processes may write the same window; each renames a file of its own.
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({"values": top.values, "places": top.places.int(), "tail": top.tail}, partial)
        partial.replace(path)

    def _path(self, window: Tensor) -> Path:
        content = f"{self.k} {self.temperature} ".encode() + window.to("cpu", torch.int64).numpy().tobytes()
        return self.directory / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
