"""A donor's weights within a receiver's: silent at first, trainable, and gone into plain tensors at the end."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from workers.compression.models.streamed import StreamedModel
from workers.compression.steps.grafting import GraftRanks, folded_tensors, graft, trained_parameters

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}
RANKS = GraftRanks(coefficients=3, correction=5)
BIASED = ["gpt2", "qwen2", "opt"]


def opened(model_type: str, directory: Path) -> StreamedModel:
    """A model whose vectors are not all zeros or ones, as those of a fresh one are."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    model.save_pretrained(directory)
    return StreamedModel.open(directory)


def disturb(block: nn.Module) -> None:
    """As after some training: nothing that is trained is where it started."""
    generator = torch.Generator().manual_seed(3)
    for _, parameter in trained_parameters(block):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


@pytest.mark.parametrize("model_type", ["llama", *BIASED])
def test_a_fresh_graft_changes_nothing(model_type: str, tmp_path: Path) -> None:
    model = opened(model_type, tmp_path)
    hidden = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    with model.block(0) as receiver, model.block(1) as donor:
        before = model.run(receiver, 0, hidden)
        graft(receiver, donor, RANKS, seed=0)
        assert torch.equal(model.run(receiver, 0, hidden), before)


@pytest.mark.parametrize("model_type", ["llama", *BIASED])
@torch.no_grad()
def test_folded_weights_compute_what_the_graft_computed(model_type: str, tmp_path: Path) -> None:
    model = opened(model_type, tmp_path)
    hidden = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    with model.block(0) as receiver, model.block(0) as plain, model.block(1) as donor:
        before = model.run(receiver, 0, hidden)
        graft(receiver, donor, RANKS, seed=0)
        disturb(receiver)
        expected = model.run(receiver, 0, hidden)
        assert plain.load_state_dict(folded_tensors(receiver)).missing_keys == []
        assert torch.allclose(model.run(plain, 0, hidden), expected, atol=1e-6)
        assert not torch.allclose(expected, before, atol=1e-2)


@torch.no_grad()
def test_a_matrix_becomes_the_sum_of_its_own_the_correction_and_the_donors_with_coefficients(tmp_path: Path) -> None:
    model = opened("qwen2", tmp_path)
    with model.block(0) as receiver, model.block(1) as donor:
        own, theirs = (block.get_submodule("self_attn.q_proj") for block in (receiver, donor))
        weight, bias = own.weight.clone(), own.bias.clone()
        graft(receiver, donor, RANKS, seed=0)
        disturb(receiver)
        parts = {
            name.removeprefix("self_attn.q_proj.parametrizations."): each for name, each in trained_parameters(receiver)
        }
        correction = parts["weight.0.correction_left"] @ parts["weight.0.correction_right"]
        coefficients = parts["weight.0.coefficient_left"] @ parts["weight.0.coefficient_right"]
        found = folded_tensors(receiver)
        assert torch.allclose(found["self_attn.q_proj.weight"], weight + correction + coefficients * theirs.weight)
        moved = parts["bias.0.trained"] + parts["bias.0.coefficient"] * theirs.bias
        assert torch.allclose(found["self_attn.q_proj.bias"], moved)
        assert not torch.allclose(found["self_attn.q_proj.bias"], bias)


def test_norms_and_biases_are_trained_too(tmp_path: Path) -> None:
    model = opened("gpt2", tmp_path)
    with model.block(0) as receiver, model.block(1) as donor:
        vectors = {name for name, each in receiver.named_parameters() if each.ndim == 1}
        graft(receiver, donor, RANKS, seed=0)
        model.run(receiver, 0, torch.randn(1, 8, 32)).square().sum().backward()
        reached = {
            name for name, each in trained_parameters(receiver) if each.grad is not None and each.grad.abs().sum() > 0
        }
        for name in vectors:
            module, _, leaf = name.rpartition(".")
            assert f"{module}.parametrizations.{leaf}.0.trained" in reached


def test_what_is_trained_is_float32_beside_weights_of_lower_precision(tmp_path: Path) -> None:
    opened("llama", tmp_path)
    model = StreamedModel.open(tmp_path, dtype=torch.bfloat16)
    with model.block(0) as receiver, model.block(1) as donor:
        graft(receiver, donor, RANKS, seed=0)
        assert {each.dtype for _, each in trained_parameters(receiver)} == {torch.float32}
        assert {each.dtype for each in folded_tensors(receiver).values()} == {torch.bfloat16}


def test_the_same_seed_draws_the_same_start(tmp_path: Path) -> None:
    model = opened("llama", tmp_path)
    drawn = []
    for seed in (1, 1, 2):
        with model.block(0) as receiver, model.block(1) as donor:
            graft(receiver, donor, RANKS, seed=seed)
            drawn.append(torch.cat([each.detach().flatten() for _, each in trained_parameters(receiver)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
