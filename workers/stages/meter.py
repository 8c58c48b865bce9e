"""The slow measurements of a whole model, behind one object that a test can replace."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from workers.compression.evaluation.peak_memory import peak_memory
from workers.compression.evaluation.speed import Speed, speed
from workers.compression.formats.verification import Probe, Verified
from workers.compression.formats.writer import Opener


class Meter:
    """Measures speed and peak memory, and opens packages in fresh processes.

    Each measurement takes seconds even for a tiny model, mostly to start a process that imports torch and transformers.
    """

    def speed(self, model: PreTrainedModel, *, prompt: int, new_tokens: int) -> Speed:
        """Return the prefill and decode speed of the model in tokens per second; see `evaluation.speed.speed`."""
        return speed(model, prompt=prompt, new_tokens=new_tokens)

    def peak_memory(
        self,
        directories: Sequence[Path],
        *,
        trusted: Collection[Path],
        prompt: int,
        new_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        timeout: float,
    ) -> list[int | None]:
        """Return each model's peak memory in bytes when it is opened and run; see `evaluation.peak_memory`."""
        return peak_memory(
            directories,
            trusted=trusted,
            prompt=prompt,
            new_tokens=new_tokens,
            dtype=dtype,
            device=device,
            timeout=timeout,
        )

    def open_fresh(
        self, opener: Opener, probes: Sequence[Probe], *, timeout: float, memory: int | None
    ) -> list[Verified]:
        """Return what a fresh process, started by `opener`, computes for each package's probe.

        Raises:
            VerificationFailed: a package does not open, or computes something else.
        """
        return opener(probes, timeout=timeout, memory=memory)
