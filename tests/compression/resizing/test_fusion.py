"""Blocks removed and taken over by their neighbours, on tiny models opened from real files."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.resizing.fusion import FUSEGPT, CheckpointStore, FusionSettings, fuse, group_around
from workers.compression.resizing.grafting import Ranks
from workers.compression.resizing.influence import BlockScores, removals
from workers.compression.resizing.local_distillation import Checkpoint, Distillation

BLOCKS = 6
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}
IDS = torch.randint(80, (12, 24), generator=torch.Generator().manual_seed(1))
OTHERS = torch.randint(80, (6, 24), generator=torch.Generator().manual_seed(2))
SHORT = Distillation(tokens=20 * 4 * 24, batch=4, rate=1e-3, coefficient_rate=1e-2)
TRAINED = FusionSettings(group=4, ranks=Ranks(4, 4), distillation=SHORT)


def write(model_type: str, directory: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.1)
        elif name.endswith(".bias"):
            nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("llama"))


def chosen(*blocks: int) -> Iterator[tuple[int, BlockScores]]:
    return ((block, BlockScores("by hand", {block: 0.5})) for block in blocks)


def fused(directory: Path, settings: FusionSettings, *blocks: int) -> tuple[list[CompressedPart], EditedModel]:
    original = StreamedModel.open(directory)
    edited = EditedModel(original)
    return list(fuse(original, edited, IDS, chosen(*blocks), settings)), edited


@torch.no_grad()
def divergence(model: PreTrainedModel, directory: Path) -> float:
    """KL of the model from the original on text that no fit has seen, in nats per token."""
    expected = AutoModelForCausalLM.from_pretrained(directory).eval()(OTHERS).logits.log_softmax(-1)
    return float((expected.exp() * (expected - model.eval()(OTHERS).logits.log_softmax(-1))).sum(-1).mean())


def dropped(directory: Path, *blocks: int) -> PreTrainedModel:
    edited = EditedModel(StreamedModel.open(directory))
    edited.apply(CompressedPart(0, "dropped", {}, {}, {}, removed=blocks))
    return edited.whole()


@pytest.mark.parametrize(
    ("block", "expected"), [(0, (0, 1, 2, 4)), (4, (1, 2, 4, 7)), (7, (2, 4, 7, 8)), (9, (4, 7, 8, 9))]
)
def test_a_group_is_as_large_at_the_ends_and_passes_over_what_is_gone(block: int, expected: tuple[int, ...]) -> None:
    assert group_around((0, 1, 2, 4, 7, 8, 9), block, 4) == expected


def test_a_model_smaller_than_the_group_is_one_group() -> None:
    assert group_around((0, 2, 3), 2, 8) == (0, 2, 3)


def test_the_closed_form_is_nearer_to_the_original_than_leaving_the_block_out(directory: Path) -> None:
    parts, edited = fused(directory, FusionSettings(group=4), 3)
    assert divergence(edited.whole(), directory) < 0.9 * divergence(dropped(directory, 3), directory)
    assert 0 < parts[0].errors["model.layers.3"] < 1


def test_a_part_changes_the_group_and_says_why_the_block_went(directory: Path) -> None:
    (part,), edited = fused(directory, FusionSettings(group=4), 3)
    assert part.removed == (3,)
    assert part.scores == {3: 0.5}
    assert set(part.tensors) == {f"model.layers.{block}.mlp.down_proj.weight" for block in (2, 4)}
    assert edited.kept == (0, 1, 2, 4, 5)


def test_the_first_block_can_go_though_no_projection_stands_before_it(directory: Path) -> None:
    (part,), edited = fused(directory, FusionSettings(group=3), 0)
    assert edited.kept == (1, 2, 3, 4, 5)
    assert set(part.tensors) == {f"model.layers.{block}.mlp.down_proj.weight" for block in (1, 2)}


def test_distillation_goes_beyond_the_closed_form(directory: Path) -> None:
    closed, _ = fused(directory, FusionSettings(group=4), 3)
    trained, _ = fused(directory, TRAINED, 3)
    assert trained[0].errors["model.layers.3"] < 0.97 * closed[0].errors["model.layers.3"]


def test_every_tensor_of_the_survivors_is_distilled(directory: Path) -> None:
    (part,), _ = fused(directory, TRAINED, 3)
    model = AutoModelForCausalLM.from_pretrained(directory)
    expected = {name for name in model.state_dict() if name.startswith(tuple(f"model.layers.{b}." for b in (1, 2, 4)))}
    assert set(part.tensors) == expected
    assert not any(torch.equal(tensor, model.state_dict()[name]) for name, tensor in part.tensors.items())


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "gemma3_text", "gpt_neox", "opt"])
@torch.no_grad()
def test_the_fused_model_saved_and_opened_computes_what_it_computed_in_memory(model_type: str, tmp_path: Path) -> None:
    write(model_type, tmp_path / "original")
    _, edited = fused(tmp_path / "original", TRAINED, 2, 4)
    expected = stream_logits(edited)
    edited.whole().save_pretrained(tmp_path / "fused")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "fused").eval()
    assert torch.allclose(opened(OTHERS).logits, expected, atol=1e-5)


@torch.no_grad()
def stream_logits(model: StreamedModel) -> Tensor:
    hidden = model.hidden(OTHERS)
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    return model.logits(hidden)


def test_each_removal_is_chosen_in_the_model_that_the_fusion_before_has_left(directory: Path) -> None:
    edited = EditedModel(StreamedModel.open(directory))
    parts = list(fuse(StreamedModel.open(directory), edited, IDS, removals(edited, OTHERS, 2), FusionSettings(group=4)))
    again = EditedModel(StreamedModel.open(directory), parts[:1])
    block, scores = next(removals(again, OTHERS, 1))
    assert parts[1].removed == (block,)
    assert parts[1].scores == pytest.approx(scores.values, abs=1e-6)


class Kept(CheckpointStore):
    """Checkpoints as copies in memory, and an end by force after some of them."""

    def __init__(self, end_after: int | None = None) -> None:
        self.checkpoints: dict[int, Checkpoint] = {}
        self.count = 0
        self.end_after = end_after

    def latest(self, part: int) -> Checkpoint | None:
        return self.checkpoints.get(part)

    def keep(self, part: int, checkpoint: Checkpoint) -> None:
        tensors: Mapping[str, Tensor] = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        self.checkpoints[part] = dataclasses.replace(checkpoint, tensors=tensors)
        self.count += 1
        if self.count == self.end_after:
            raise KeyboardInterrupt


def same(found: CompressedPart, expected: CompressedPart) -> bool:
    return found.tensors.keys() == expected.tensors.keys() and all(
        torch.equal(found.tensors[name], expected.tensors[name]) for name in expected.tensors
    )


def test_killed_within_the_second_distillation_it_goes_on_to_the_same_weights(directory: Path) -> None:
    settings = dataclasses.replace(TRAINED, interval=6)
    whole, _ = fused(directory, settings, 3, 1)
    original, done, store = StreamedModel.open(directory), [], Kept(end_after=6)
    with pytest.raises(KeyboardInterrupt):
        for part in fuse(original, EditedModel(original), IDS, chosen(3, 1), settings, checkpoints=store):
            done.append(part)  # noqa: PERF402 - what was finished before the end stays
    assert len(done) == 1
    assert store.checkpoints[1].step == 12
    (rest,) = fuse(
        original, EditedModel(original), IDS, chosen(1), settings, start=1, finished=done.__getitem__, checkpoints=store
    )
    assert rest.index == 1
    assert same(done[0], whole[0])
    assert same(rest, whole[1])


def test_resuming_without_the_finished_parts_is_refused(directory: Path) -> None:
    original = StreamedModel.open(directory)
    with pytest.raises(ValueError, match="where the finished parts are"):
        next(fuse(original, EditedModel(original), IDS, chosen(1), FusionSettings(), start=1))


def test_the_published_procedure_has_its_published_hyper_parameters() -> None:
    settings = FUSEGPT.distillation
    assert settings is not None
    assert (FUSEGPT.group, FUSEGPT.ranks, FUSEGPT.teacher) == (8, Ranks(128, 128), "current")
    assert FUSEGPT.before is None
    assert FUSEGPT.after is None
    assert (settings.coefficient_rate, settings.rate, settings.betas, settings.epsilon) == (
        1e-3,
        9.65e-6,
        (0.9, 0.95),
        1e-8,
    )
    assert (settings.batch, settings.loss, settings.warm_up, settings.clip) == (8, "batch_divergence", 0, math.inf)
    assert settings.tokens == 20 * 1024 * 2048


def test_the_published_procedure_learns_from_the_model_that_still_has_the_block(directory: Path) -> None:
    settings = dataclasses.replace(FUSEGPT, group=4, distillation=dataclasses.replace(SHORT, loss="batch_divergence"))
    (part,), _ = fused(directory, settings, 3)
    assert (
        part.errors["model.layers.3"]
        < fused(directory, dataclasses.replace(settings, distillation=None), 3)[0][0].errors["model.layers.3"]
    )
