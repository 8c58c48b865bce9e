"""The last projection before a gap, fitted anew: against least squares written out, with and without biases."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from workers.compression.models.streamed import StreamedModel
from workers.compression.steps.projections import (
    Refit,
    adds_to_residual_stream,
    attention_projection,
    last_projection,
    refit,
    refit_attention,
    refitted_tensors,
    stream_behind_attention,
)

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}
OWN = {"opt": {"word_embed_proj_dim": 16, "ffn_dim": 24}, "phi3": {"pad_token_id": 0}}


def opened(model_type: str, directory: Path) -> StreamedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **OWN.get(model_type, {})))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    return StreamedModel.open(directory)


def refitted(model: StreamedModel, block: nn.Module, hidden: Tensor, targets: Tensor, settings: Refit) -> Tensor:
    """The block's output once its last projection has been changed."""
    refit(model, block, 0, torch.split(hidden, 1), torch.split(targets, 1), settings)
    return model.run(block, 0, hidden)


def stream(seed: int) -> Tensor:
    return torch.randn(20, 12, 16, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def behind_attention(model: StreamedModel, block: nn.Module, hidden: Tensor) -> Tensor:
    """The stream there, [tokens, H] in float64."""
    return torch.cat([*stream_behind_attention(model, block, 0, torch.split(hidden, 1))]).flatten(0, 1).double()


@torch.no_grad()
def inputs_of(model: StreamedModel, block: nn.Module, hidden: Tensor, name: str) -> Tensor:
    """Return what enters the projection of that name, [tokens, in]."""
    entered: list[Tensor] = []
    handle = block.get_submodule(name).register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model.run(block, 0, hidden)
    handle.remove()
    return entered[0].flatten(0, -2)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox", "phi3"])
@torch.no_grad()
def test_the_output_is_that_of_weighted_least_squares(model_type: str, tmp_path: Path) -> None:
    model, hidden, targets = opened(model_type, tmp_path), stream(1), stream(2)
    with model.block(0) as block:
        before = model.run(block, 0, hidden).flatten(0, 1).double()
        features = inputs_of(model, block, hidden, last_projection(model.inventory, block)).double()
        if block.get_submodule(last_projection(model.inventory, block)).bias is not None:
            features = torch.cat((features, torch.ones(len(features), 1)), 1)
        wanted = targets.flatten(0, 1).double()
        weights = 1 / wanted.norm(dim=1, keepdim=True)
        change = torch.linalg.lstsq(features * weights, (wanted - before) * weights).solution
        found = refitted(model, block, hidden, targets, Refit(ridge=1e-9))
        assert torch.allclose(found.flatten(0, 1).double(), before + features @ change, atol=2e-3)
        assert torch.equal(model.run(block, 0, hidden), found)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox", "phi"])
@torch.no_grad()
def test_the_stream_behind_attention_is_that_of_weighted_least_squares(model_type: str, tmp_path: Path) -> None:
    model, hidden, targets = opened(model_type, tmp_path), stream(1), stream(2)
    with model.block(0) as block:
        name = attention_projection(model.inventory, block)
        assert name is not None
        before = behind_attention(model, block, hidden)
        features = inputs_of(model, block, hidden, name).double()
        if block.get_submodule(name).bias is not None:
            features = torch.cat((features, torch.ones(len(features), 1)), 1)
        wanted = targets.flatten(0, 1).double()
        weights = 1 / wanted.norm(dim=1, keepdim=True)
        change = torch.linalg.lstsq(features * weights, (wanted - before) * weights).solution
        refit_attention(model, block, 0, torch.split(hidden, 1), torch.split(targets, 1), Refit(ridge=1e-9))
        assert torch.allclose(behind_attention(model, block, hidden), before + features @ change, atol=2e-3)


@torch.no_grad()
def test_attention_behind_a_norm_stays_as_it_is(tmp_path: Path) -> None:
    model, hidden, targets = opened("gemma2", tmp_path), stream(1), stream(2)
    with model.block(0) as block:
        before = model.run(block, 0, hidden)
        refit_attention(model, block, 0, torch.split(hidden, 1), torch.split(targets, 1), Refit(ridge=1e-9))
        assert torch.equal(model.run(block, 0, hidden), before)


@torch.no_grad()
def test_a_share_makes_that_part_of_the_change(tmp_path: Path) -> None:
    model, hidden, targets = opened("llama", tmp_path), stream(1), stream(2)
    outputs = []
    for share in (0.0, 0.25, 1.0):
        with model.block(0) as block:
            outputs.append(refitted(model, block, hidden, targets, Refit(0.1, share)))
    assert torch.allclose(outputs[1] - outputs[0], 0.25 * (outputs[2] - outputs[0]), atol=1e-5)


@torch.no_grad()
def test_a_strong_ridge_changes_little(tmp_path: Path) -> None:
    model, hidden, targets = opened("llama", tmp_path), stream(1), stream(2)
    moved = []
    for ridge in (0.1, 10.0, 1e6):
        with model.block(0) as block:
            before = model.run(block, 0, hidden)
            moved.append(float((refitted(model, block, hidden, targets, Refit(ridge)) - before).norm()))
    assert moved[0] > 2 * moved[1] > 1000 * moved[2]


@pytest.mark.parametrize(("model_type", "expected"), [("gpt2", True), ("gpt_neox", True), ("gemma3_text", False)])
def test_a_norm_behind_the_projection_is_noticed(model_type: str, expected: bool, tmp_path: Path) -> None:
    model = opened(model_type, tmp_path)
    with model.block(0) as block:
        assert adds_to_residual_stream(model, block, 0, stream(1)) is expected


@torch.no_grad()
def test_an_enormous_state_does_not_hide_that_the_projection_adds_to_it(tmp_path: Path) -> None:
    opened("llama", tmp_path)
    model = StreamedModel.open(tmp_path, dtype=torch.bfloat16)
    hidden, targets = stream(1).bfloat16(), stream(2).bfloat16()
    hidden[:, 0] *= 10_000
    with model.block(0) as block:
        before = model.run(block, 0, hidden)
        assert not torch.equal(refitted(model, block, hidden, targets, Refit(0.1)), before)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
@torch.no_grad()
def test_behind_such_a_norm_projection_and_gain_bring_the_block_nearer_to_the_target(
    model_type: str, tmp_path: Path
) -> None:
    model, hidden = opened(model_type, tmp_path), stream(1)
    generator = torch.Generator().manual_seed(3)
    with model.block(0) as block:
        for name in ("mlp.down_proj", "post_feedforward_layernorm"):
            weight = block.get_parameter(f"{name}.weight")
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
        targets = model.run(block, 0, hidden)
    with model.block(0) as block:
        before = model.run(block, 0, hidden)
        after = refitted(model, block, hidden, targets, Refit(0.01))
        assert (after - targets).norm() < 0.5 * (before - targets).norm()
        assert torch.equal(model.run(block, 0, hidden), after)


def test_the_norm_behind_the_projection_is_among_what_is_refitted(tmp_path: Path) -> None:
    model = opened("gemma3_text", tmp_path)
    with model.block(0) as block:
        assert set(refitted_tensors(model, block, 0)) == {
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.0.post_feedforward_layernorm.weight",
        }
