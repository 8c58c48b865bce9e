"""Blocks chosen, the others refitted, and what they take up, on tiny models opened from real files."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from modelpress.spec.steps import Refit
from tests.support.block_removal import IDS, OTHERS, SHORT, chosen, divergence, shortened, write
from tests.support.models import logits_of
from tests.support.planning import applied, taken
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.absorb import Absorption, absorb_each
from workers.compression.steps.grafting import GraftRanks
from workers.compression.steps.influence import removals
from workers.compression.steps.remove import removal_parts
from workers.compression.steps.work import Work

TRAINED = Absorption(SHORT, survivors=3, ranks=GraftRanks(4, 4))
REMOVED = (3, 1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("llama"))


def fused(directory: Path, absorption: Absorption | None = None) -> tuple[list[CompressedPart], EditedModel]:
    """The parts that removal, refit and, on request, absorption leave, and the model that has them."""
    original = StreamedModel.open(directory)
    edited = EditedModel(original)
    parts = list(applied(edited, removal_parts(edited.inventory, chosen(*REMOVED))))
    parts += taken(Refit(), original, edited, IDS)
    if absorption is not None:
        parts += applied(edited, absorb_each(Work(original, edited, IDS, {}), absorption))
    return parts, edited


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


def test_blocks_go_first_and_say_why(directory: Path) -> None:
    parts, edited = fused(directory)
    assert [(part.removed, part.scores) for part in parts[:2]] == [((3,), {3: 0.5}), ((1,), {1: 0.5})]
    assert not any(part.removed for part in parts[2:])
    assert edited.kept == (0, 2, 4, 5)


def test_each_removal_is_chosen_in_what_the_one_before_has_left(directory: Path) -> None:
    original = StreamedModel.open(directory)
    edited = EditedModel(original)
    first, second = applied(edited, removal_parts(edited.inventory, removals(edited, OTHERS, 2)))
    block, scores = next(removals(shortened(original, *first.removed), OTHERS, 1))
    assert second.removed == (block,)
    assert second.scores == pytest.approx(scores.values, abs=1e-6)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "gemma3_text", "gpt_neox", "opt"])
@torch.no_grad()
def test_the_fused_model_saved_and_opened_computes_what_it_computed_in_memory(model_type: str, tmp_path: Path) -> None:
    _, edited = fused(write(model_type, tmp_path / "original"), TRAINED)
    expected = logits_of(edited, OTHERS)
    edited.whole().save_pretrained(tmp_path / "fused")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "fused").eval()
    assert torch.allclose(opened(OTHERS).logits, expected, atol=1e-5)
