"""What the blocks around a gap take up of the removed one, on tiny models opened from real files."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.block_removal import IDS, SHORT, Kept, divergence, same, shortened, write
from workers.compression.models.streamed import StreamedModel
from workers.compression.steps.absorb import Absorption, absorb_all, survivors_around
from workers.compression.steps.grafting import Ranks

SETTINGS = Absorption(SHORT, survivors=3, ranks=Ranks(4, 4))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    ("block", "expected"), [(0, (1, 2, 4)), (1, (0, 2, 4)), (4, (1, 2, 7)), (7, (2, 4, 8)), (9, (4, 7, 8))]
)
def test_the_survivors_pass_over_what_is_gone_and_are_as_many_at_the_ends(
    block: int, expected: tuple[int, ...]
) -> None:
    assert survivors_around((0, 1, 2, 4, 7, 8, 9), block, 3) == expected
    assert survivors_around([each for each in (0, 1, 2, 4, 7, 8, 9) if each != block], block, 3) == expected


def test_in_a_model_smaller_than_the_group_all_others_survive() -> None:
    assert survivors_around((0, 2, 3), 2, 7) == (0, 3)


@pytest.mark.parametrize("block", [0, 3, 5])
def test_what_the_survivors_take_up_brings_the_model_nearer_to_the_original(directory: Path, block: int) -> None:
    original = StreamedModel.open(directory)
    edited = shortened(original, block)
    before = divergence(edited.whole(), directory)
    (part,) = absorb_all(original, edited, IDS, SETTINGS)
    assert divergence(edited.whole(), directory) < 0.97 * before
    assert 0 < part.errors[f"model.layers.{block}"] < 1


def test_every_tensor_of_the_survivors_is_distilled(directory: Path) -> None:
    original = StreamedModel.open(directory)
    (part,) = absorb_all(original, shortened(original, 3), IDS, SETTINGS)
    model = AutoModelForCausalLM.from_pretrained(directory)
    expected = {name for name in model.state_dict() if name.startswith(tuple(f"model.layers.{b}." for b in (1, 2, 4)))}
    assert set(part.tensors) == expected
    assert not any(torch.equal(tensor, model.state_dict()[name]) for name, tensor in part.tensors.items())


def test_killed_within_the_second_distillation_it_goes_on_to_the_same_weights(directory: Path) -> None:
    settings = dataclasses.replace(SETTINGS, interval=6)
    original, done, store = StreamedModel.open(directory), [], Kept(end_after=6)
    whole = list(absorb_all(original, shortened(original, 1, 3), IDS, settings))
    with pytest.raises(KeyboardInterrupt):
        for part in absorb_all(original, shortened(original, 1, 3), IDS, settings, checkpoints=store):
            done.append(part)  # noqa: PERF402 - what was finished before the end stays
    assert len(done) == 1
    assert store.checkpoints[1].step == 12
    (rest,) = absorb_all(
        original,
        shortened(original, 1, 3),
        IDS,
        settings,
        start=1,
        finished=done.__getitem__,
        checkpoints=store,
    )
    assert same(done[0], whole[0])
    assert same(rest, whole[1])
