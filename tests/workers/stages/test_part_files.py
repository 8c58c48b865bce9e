"""A finished part, written and read back."""

from pathlib import Path

import pytest
import torch

from workers.compression.parts import CompressedPart
from workers.stages.part_files import read_part, write_part

PART = CompressedPart(
    "model.layers.3",
    {"model.layers.3.mlp.up_proj": {"kind": "low_rank", "rank": 2}},
    {"model.layers.3.mlp.up_proj.first": torch.arange(6.0).view(2, 3)},
    {"model.layers.3.mlp.up_proj": 0.25},
    removed=(4, 5),
    scores={3: 0.5, 4: 0.125},
)


def test_a_part_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_part(tmp_path / "part", PART)
    found = read_part(tmp_path / "part")
    for field in ("name", "structures", "errors", "removed", "scores"):
        assert getattr(found, field) == getattr(PART, field)
    assert found.tensors.keys() == PART.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in PART.tensors.items())


def test_a_part_without_tensors_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_part(tmp_path / "part", CompressedPart("model.layers.3", removed=(3,)))
    found = read_part(tmp_path / "part")
    assert (found.removed, dict(found.tensors)) == ((3,), {})


def test_a_tensor_that_is_not_there_is_missed_by_name(tmp_path: Path) -> None:
    write_part(tmp_path / "part", PART)
    with pytest.raises(KeyError, match="second"):
        read_part(tmp_path / "part").tensors["model.layers.3.mlp.up_proj.second"]
