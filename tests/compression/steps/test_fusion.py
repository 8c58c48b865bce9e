"""Blocks chosen, the others refitted, and what they take up, on tiny models opened from real files."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from workers.compression.steps.fusion import fuse, part_count

from tests.support.block_removal import (
    BLOCKS,
    IDS,
    OTHERS,
    SHORT,
    chosen,
    divergence,
    same,
    shortened,
    stream_logits,
    write,
)
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.absorb import Absorption
from workers.compression.steps.grafting import Ranks
from workers.compression.steps.influence import removals

TRAINED = Absorption(SHORT, survivors=3, ranks=Ranks(4, 4))
REMOVED = (3, 1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("llama"))


def fused(directory: Path, absorption: Absorption | None = None) -> tuple[list[CompressedPart], EditedModel]:
    original = StreamedModel.open(directory)
    edited = EditedModel(original)
    return list(fuse(original, edited, IDS, chosen(*REMOVED), len(REMOVED), absorption)), edited


def test_refitting_comes_nearer_to_the_original_than_removing_alone(directory: Path) -> None:
    removed = shortened(StreamedModel.open(directory), *REMOVED)
    _, refitted = fused(directory)
    assert divergence(refitted.whole(), directory) < 0.95 * divergence(removed.whole(), directory)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_where_a_norm_follows_the_mlp_refitting_helps_too(model_type: str, tmp_path: Path) -> None:
    removed = shortened(StreamedModel.open(write(model_type, tmp_path)), *REMOVED)
    _, refitted = fused(tmp_path)
    assert divergence(refitted.whole(), tmp_path) < divergence(removed.whole(), tmp_path)


def test_distillation_goes_beyond_the_closed_form(directory: Path) -> None:
    (_, refitted), (_, distilled) = fused(directory), fused(directory, TRAINED)
    closed = divergence(refitted.whole(), directory, IDS)
    assert divergence(distilled.whole(), directory, IDS) < 0.97 * closed


@pytest.mark.parametrize("absorption", [None, TRAINED])
def test_there_are_as_many_parts_as_announced(directory: Path, absorption: Absorption | None) -> None:
    parts, _ = fused(directory, absorption)
    assert [part.index for part in parts] == list(range(part_count(BLOCKS, 2, absorbs=absorption is not None)))


def test_blocks_go_first_and_say_why(directory: Path) -> None:
    parts, edited = fused(directory)
    assert [(part.removed, part.scores) for part in parts[:2]] == [((3,), {3: 0.5}), ((1,), {1: 0.5})]
    assert not any(part.removed for part in parts[2:])
    assert edited.kept == (0, 2, 4, 5)


def test_each_removal_is_chosen_in_what_the_one_before_has_left(directory: Path) -> None:
    original = StreamedModel.open(directory)
    edited = EditedModel(original)
    first, second = islice(fuse(original, edited, IDS, removals(edited, OTHERS, 2), 2), 2)
    block, scores = next(removals(shortened(original, *first.removed), OTHERS, 1))
    assert second.removed == (block,)
    assert second.scores == pytest.approx(scores.values, abs=1e-6)


@pytest.mark.parametrize("start", range(1, 8))
def test_resumed_behind_any_part_the_rest_is_the_same(directory: Path, start: int) -> None:
    original = StreamedModel.open(directory)
    whole, _ = fused(directory, TRAINED)
    edited = EditedModel(original, whole[: min(start, len(REMOVED))])
    rest = fuse(
        original, edited, IDS, chosen(*REMOVED[start:]), len(REMOVED), TRAINED, start=start, finished=whole.__getitem__
    )
    for found, expected in zip(rest, whole[start:], strict=True):
        assert same(found, expected)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "gemma3_text", "gpt_neox", "opt"])
@torch.no_grad()
def test_the_fused_model_saved_and_opened_computes_what_it_computed_in_memory(model_type: str, tmp_path: Path) -> None:
    _, edited = fused(write(model_type, tmp_path / "original"), TRAINED)
    expected = stream_logits(edited)
    edited.whole().save_pretrained(tmp_path / "fused")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "fused").eval()
    assert torch.allclose(opened(OTHERS).logits, expected, atol=1e-5)
