"""A meter whose figures were recorded once: for whole jobs that are not about the measuring.

Run as a module, this is the computing child of a worker with that meter; `recorded_cli` starts such a worker.
"""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from workers import runner
from workers.compression.evaluation.speed import Speed
from workers.compression.formats.verification import Probe, Verified
from workers.compression.formats.writer import Opener
from workers.stages.meter import Meter


class RecordedMeter(Meter):
    """Returns recorded figures at once, and takes every package for sound."""

    def speed(self, model: PreTrainedModel, *, prompt: int, new_tokens: int) -> Speed:
        return Speed(900.0, 30.0, prompt, new_tokens, torch.get_num_threads(), "float32")

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
        return [500_000_000] * len(directories)

    def open_fresh(
        self, opener: Opener, probes: Sequence[Probe], *, timeout: float, memory: int | None
    ) -> list[Verified]:
        return [Verified(difference=0.0, parameters=0, generated=(), engine="none", version="0") for _ in probes]


def main() -> int:
    """Run the attempt that standard input assigns, and return the exit status."""
    return runner.main(RecordedMeter())


if __name__ == "__main__":
    sys.exit(main())
