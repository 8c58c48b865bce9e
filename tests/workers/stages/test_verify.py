"""How long opening a package may take."""

from pathlib import Path

import torch

from workers.compression.formats.verification import Probe
from workers.stages.verify import TIMEOUT_SECONDS, timeout_of


def sparse_package(directory: Path, size: int) -> Probe:
    directory.mkdir()
    with (directory / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return Probe(directory, torch.zeros(1, 2), torch.zeros(1, 2, 3))


def test_every_checkpoint_is_given_the_time_to_read_its_weights_from_a_slow_disk(tmp_path: Path) -> None:
    probes = [sparse_package(tmp_path / str(size), size) for size in (1_000_000_000, 20_000_000)]
    assert timeout_of(probes) == TIMEOUT_SECONDS + 102
