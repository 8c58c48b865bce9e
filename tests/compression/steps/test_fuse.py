"""The published procedure, on tiny models opened from real files."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.block_removal import IDS, OTHERS, SHORT, Kept, chosen, divergence, shortened, write
from tests.support.compression import same
from tests.support.models import logits_of
from tests.support.planning import applied
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.absorb import Absorption
from workers.compression.steps.fuse import EPOCHS, fuse_each, fusegpt
from workers.compression.steps.grafting import GraftRanks
from workers.compression.steps.influence import BlockScores, removals
from workers.compression.steps.work import Work

SETTINGS = Absorption(dataclasses.replace(SHORT, loss="batch_divergence"), survivors=3, ranks=GraftRanks(4, 4))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("llama"))


def fused(directory: Path, *blocks: int) -> tuple[list[CompressedPart], EditedModel]:
    edited = EditedModel(StreamedModel.open(directory))
    return list(fuse(edited, chosen(*blocks))), edited


def fuse(
    edited: EditedModel,
    going: Iterable[tuple[int, BlockScores]],
    settings: Absorption = SETTINGS,
    checkpoints: Kept | None = None,
) -> Iterator[CompressedPart]:
    return applied(edited, fuse_each(Work(edited, edited, IDS, {}, checkpoints), going, settings))


def test_it_has_its_published_hyper_parameters() -> None:
    found = fusegpt(tokens=123)
    settings = found.distillation
    assert (found.survivors, found.ranks, EPOCHS, settings.tokens) == (7, GraftRanks(128, 128), 20, 123)
    assert (settings.coefficient_learning_rate, settings.learning_rate, settings.betas) == (1e-3, 9.65e-6, (0.9, 0.95))
    assert (settings.epsilon, settings.weight_decay, settings.warmup_ratio) == (1e-8, 0.0, 0.0)
    assert (settings.batch_size, settings.loss, settings.max_gradient_norm) == (8, "batch_divergence", math.inf)
    assert not settings.float32


@pytest.mark.parametrize("block", [0, 3, 5])
def test_the_fused_model_is_nearer_to_the_original_than_one_without_the_block(directory: Path, block: int) -> None:
    (part,), edited = fused(directory, block)
    assert block not in edited.kept
    assert (part.removed, part.scores) == ((block,), {block: 0.5})
    dropped = shortened(StreamedModel.open(directory), block)
    assert divergence(edited.whole(), directory) < divergence(dropped.whole(), directory)


def test_each_removal_is_chosen_in_the_model_that_the_fusion_before_has_left(directory: Path) -> None:
    original = StreamedModel.open(directory)
    edited = EditedModel(original)
    parts = list(fuse(edited, removals(edited, OTHERS, 2)))
    block, scores = next(removals(EditedModel(original, parts[:1]), OTHERS, 1))
    assert parts[1].removed == (block,)
    assert parts[1].scores == pytest.approx(scores.values, abs=1e-6)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "gemma3_text", "gpt_neox", "opt"])
@torch.no_grad()
def test_the_fused_model_saved_and_opened_computes_what_it_computed_in_memory(model_type: str, tmp_path: Path) -> None:
    _, edited = fused(write(model_type, tmp_path / "original"), 2, 4)
    expected = logits_of(edited, OTHERS)
    edited.whole().save_pretrained(tmp_path / "fused")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "fused").eval()
    assert torch.allclose(opened(OTHERS).logits, expected, atol=1e-5)


def test_killed_within_the_second_distillation_it_goes_on_to_the_same_weights(directory: Path) -> None:
    distillation = dataclasses.replace(SETTINGS.distillation, interval=6)
    settings = dataclasses.replace(SETTINGS, distillation=distillation)
    original, done, store = StreamedModel.open(directory), [], Kept(end_after=6)
    whole = list(fuse(EditedModel(original), chosen(3, 1), settings))
    with pytest.raises(KeyboardInterrupt):
        for part in fuse(EditedModel(original), chosen(3, 1), settings, store):
            done.append(part)  # noqa: PERF402 - what was finished before the end stays
    assert len(done) == 1
    assert store.checkpoints["model.layers.1"].step == 12
    (rest,) = fuse(EditedModel(original, done), chosen(1), settings, store)
    assert same(done[0], whole[0])
    assert same(rest, whole[1])
