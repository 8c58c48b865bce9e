"""What the blocks around a gap take up of the removed one, on tiny models opened from real files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.block_removal import IDS, SHORT, Kept, divergence, shortened, write
from tests.support.compression import same
from tests.support.planning import applied
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.absorb import Absorption, absorb_each, survivors_around
from workers.compression.steps.grafting import GraftRanks
from workers.compression.steps.work import Work

SETTINGS = Absorption(SHORT, survivors=3, ranks=GraftRanks(4, 4))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("llama"))


def absorb(
    original: StreamedModel,
    edited: EditedModel,
    settings: Absorption = SETTINGS,
    checkpoints: Kept | None = None,
    finished: int = 0,
) -> Iterator[CompressedPart]:
    return applied(edited, absorb_each(Work(original, edited, IDS, {}, checkpoints), settings, finished))


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
    (part,) = absorb(original, edited)
    assert divergence(edited.whole(), directory) < 0.97 * before
    assert 0 < part.errors[f"model.layers.{block}"] < 1


def test_every_tensor_of_the_survivors_is_distilled(directory: Path) -> None:
    original = StreamedModel.open(directory)
    (part,) = absorb(original, shortened(original, 3))
    model = AutoModelForCausalLM.from_pretrained(directory)
    expected = {name for name in model.state_dict() if name.startswith(tuple(f"model.layers.{b}." for b in (1, 2, 4)))}
    assert set(part.tensors) == expected
    assert not any(torch.equal(tensor, model.state_dict()[name]) for name, tensor in part.tensors.items())


def test_killed_within_the_second_distillation_it_goes_on_to_the_same_weights(directory: Path) -> None:
    settings = dataclasses.replace(SETTINGS, distillation=dataclasses.replace(SHORT, interval=6))
    original, done, store = StreamedModel.open(directory), [], Kept(end_after=6)
    whole = list(absorb(original, shortened(original, 1, 3), settings))
    with pytest.raises(KeyboardInterrupt):
        for part in absorb(original, shortened(original, 1, 3), settings, store):
            done.append(part)  # noqa: PERF402 - what was finished before the end stays
    assert len(done) == 1
    assert store.checkpoints["model.layers.3"].step == 12
    edited = shortened(original, 1, 3)
    edited.apply(done[0])
    (rest,) = absorb(original, edited, settings, store, finished=1)
    assert same(done[0], whole[0])
    assert same(rest, whole[1])
