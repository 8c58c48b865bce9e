"""Training a group of blocks alone: what is learned, in which order, and going on after an interruption."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.students import Recorder
from workers.compression.models.streamed import StreamedModel
from workers.compression.steps.grafting import GraftRanks, folded_tensors, graft
from workers.compression.steps.local_distillation import (
    LocalDistillationSettings,
    batch_divergence,
    distil_blocks,
    relative_error,
)
from workers.compression.training.loop import Diverged

CONFIG = LlamaConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    vocab_size=50,
)
SETTINGS = LocalDistillationSettings(
    tokens=12 * 4 * 8, batch_size=4, learning_rate=3e-3, coefficient_learning_rate=3e-3, interval=5
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StreamedModel:
    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    return StreamedModel.open(directory)


def grafted(model: StreamedModel) -> dict[int, nn.Module]:
    blocks = {}
    for index in (1, 3):
        with model.block(index) as receiver, model.block(2) as donor:
            blocks[index] = _held(receiver)
            graft(blocks[index], donor, GraftRanks(2, 2), seed=index)
    return blocks


def _held(block: nn.Module) -> nn.Module:
    """A copy that outlives the loan."""
    return copy.deepcopy(block)


def stream(seed: int, sequences: int = 10) -> Tensor:
    return torch.randn(sequences, 8, 16, generator=torch.Generator().manual_seed(seed))


def test_the_relative_error_counts_every_token_alike() -> None:
    teacher = torch.tensor([[[100.0, 0.0], [0.0, 1.0]]])
    student = torch.tensor([[[110.0, 0.0], [0.0, 0.5]]])
    assert float(relative_error(student, teacher)) == pytest.approx((0.01 + 0.25) / 2)


def test_a_shift_common_to_all_is_seen_by_ours_and_invisible_to_the_published_loss() -> None:
    teacher, shift = stream(1), torch.randn(8, 16, generator=torch.Generator().manual_seed(9))
    assert float(relative_error(teacher + shift, teacher)) > 0.1
    assert float(batch_divergence(teacher + shift, teacher)) == pytest.approx(0, abs=1e-5)


def test_the_published_loss_is_zero_for_a_batch_of_one() -> None:
    assert float(batch_divergence(stream(1, 1), stream(2, 1))) == 0


def test_the_published_loss_is_the_divergence_over_the_batch_divided_by_its_size() -> None:
    student, teacher = stream(1, 4), stream(2, 4)
    given, expected = student.softmax(0), teacher.softmax(0)
    by_hand = (expected * (expected / given).log()).sum() / 4
    assert float(batch_divergence(student, teacher)) == pytest.approx(float(by_hand), rel=1e-5)


@torch.no_grad()
def test_the_group_learns_to_do_without_the_block_between(model: StreamedModel) -> None:
    inputs = targets = stream(1)
    for index in (1, 2, 3):
        with model.block(index) as block:
            targets = model.run(block, index, targets)
    settings = replace(SETTINGS, tokens=40 * 4 * 8, learning_rate=1e-2, coefficient_learning_rate=1e-2)
    losses = distil_blocks(model, grafted(model), inputs, targets, settings).losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_there_is_a_checkpoint_every_interval_and_after_the_last_step(model: StreamedModel) -> None:
    recorder = Recorder()
    distil_blocks(model, grafted(model), stream(1), stream(2), SETTINGS, recorder)
    assert [checkpoint.step for checkpoint in recorder.checkpoints] == [5, 10, 12]


@pytest.mark.parametrize("stopped", [1, 6, 11])
def test_a_resumed_distillation_ends_with_the_same_weights(stopped: int, model: StreamedModel) -> None:
    whole, again, recorder = grafted(model), grafted(model), Recorder()
    distil_blocks(model, whole, stream(1), stream(2), replace(SETTINGS, interval=stopped), recorder)
    distil_blocks(model, again, stream(1), stream(2), SETTINGS, Recorder(recorder.checkpoints[0]))
    for index, block in whole.items():
        expected = folded_tensors(block)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in folded_tensors(again[index]).items())


def test_a_finished_distillation_is_restored_without_a_step(model: StreamedModel) -> None:
    whole, again = grafted(model), grafted(model)
    recorder = Recorder(distil_blocks(model, whole, stream(1), stream(2), SETTINGS))
    distil_blocks(model, again, stream(1), stream(2), SETTINGS, recorder)
    assert recorder.steps == []
    assert torch.equal(folded_tensors(again[1])["mlp.up_proj.weight"], folded_tensors(whole[1])["mlp.up_proj.weight"])


def test_tokens_are_what_is_spent() -> None:
    assert LocalDistillationSettings(tokens=1000, batch_size=4).steps(length=50) == 5
    assert LocalDistillationSettings(tokens=1001, batch_size=4).steps(length=50) == 6


def test_coefficients_and_the_rest_learn_at_their_own_rates(model: StreamedModel) -> None:
    blocks = grafted(model)
    settings = replace(SETTINGS, tokens=32, learning_rate=0.0, warmup_ratio=0.0)
    before = {name: each.detach().clone() for name, each in blocks[1].named_parameters()}
    distil_blocks(model, blocks, stream(1), stream(2), settings)
    moved = {name for name, each in blocks[1].named_parameters() if not torch.equal(each, before[name])}
    assert moved
    assert all(".coefficient" in name for name in moved)


def test_a_loss_that_rises_is_no_divergence_but_one_that_is_no_number_is(model: StreamedModel) -> None:
    risen = distil_blocks(model, grafted(model), stream(1), stream(2), replace(SETTINGS, learning_rate=1.0))
    assert max(risen.losses) > 3 * min(risen.losses)
    assert risen.restarts == 0
    with pytest.raises(Diverged):
        distil_blocks(model, grafted(model), stream(1), torch.full_like(stream(2), math.nan), SETTINGS)
