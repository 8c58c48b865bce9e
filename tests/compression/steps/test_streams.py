"""Hidden states at the block they are asked for, computed once where there is room."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.streams import Stream

BLOCKS = 5
CONFIG = LlamaConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=BLOCKS,
    num_attention_heads=2,
    num_key_value_heads=2,
    vocab_size=50,
)
IDS = torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(0))


class Watched(EditedModel):
    """Notes which blocks were loaded."""

    def __init__(self, original: StreamedModel) -> None:
        self.loaded: list[int] = []
        super().__init__(original)

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        self.loaded.append(index)
        return super().block(index)


@pytest.fixture
def model(tmp_path: Path) -> Watched:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG).save_pretrained(tmp_path)
    return Watched(StreamedModel.open(tmp_path))


@torch.no_grad()
def states(model: EditedModel) -> list[Tensor]:
    """Return what enters each block, and what leaves the last."""
    found = [model.hidden(IDS)]
    for index in range(BLOCKS):
        with model.block(index) as block:
            found.append(model.run(block, index, found[-1]))
    return found


@pytest.mark.parametrize("disk", [1, 4000, 2**30])
def test_it_is_what_enters_the_block_in_whatever_order_blocks_are_asked_for(disk: int, model: Watched) -> None:
    expected, stream = states(model), Stream(model, IDS, disk=disk)
    for index in (3, 1, BLOCKS, 0, 4):
        assert torch.allclose(stream.entering(index), expected[index], atol=1e-6)


def test_what_was_kept_is_not_computed_again(model: Watched) -> None:
    stream = Stream(model, IDS)
    stream.entering(3)
    model.loaded.clear()
    stream.entering(2)
    stream.entering(4)
    assert model.loaded == [3]


def test_behind_a_changed_block_all_is_computed_anew(model: Watched) -> None:
    stream = Stream(model, IDS)
    stream.entering(BLOCKS)
    model.apply(CompressedPart("removed", removed=(2,)))
    stream.forget(2)
    assert torch.allclose(stream.entering(BLOCKS), states(model)[-1], atol=1e-6)


def test_files_stay_within_the_disk_they_were_given(
    model: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    stream = Stream(model, IDS, disk=2 * IDS.numel() * 16 * 4)
    stream.entering(BLOCKS)
    assert len([file for file in scratch.rglob("*") if file.is_file()]) == 1
