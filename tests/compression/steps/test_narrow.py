"""Narrowing the MLPs of tiny models of several architectures, opened from real files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelpress.spec.architectures import architecture_named
from modelpress.spec.dimensions import intermediate_size
from modelpress.spec.steps import Narrow
from tests.support.models import MODELS, distance, open_tiny, sampled, tiny_config, token_ids
from tests.support.planning import taken
from workers.compression.models.edited import EditedModel, put
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps import narrow as width

SOME = ("llama", "gpt2", "opt", "opt-projected", "gemma2", "phi3", "gpt_neox")

NARROWABLE = [name for name in MODELS if architecture_named(tiny_config(name).model_type).width_field is not None]


def narrowed(original: StreamedModel, model: EditedModel, size: int, ids: Tensor | None = None) -> list[CompressedPart]:
    """The parts of the model with that many hidden units in each MLP."""
    step = Narrow(intermediate_size=size)
    return list(taken(step, original, model, token_ids(8, 32) if ids is None else ids))


def first_units(model: StreamedModel, size: int) -> list[CompressedPart]:
    """Narrowing without a choice or a fit, for comparison."""
    mlp = architecture_named(model.inventory.model_type).mlp
    units = intermediate_size(model.inventory)
    parts = []
    for index in range(model.inventory.blocks):
        prefix = f"{model.inventory.block_prefix}.{index}."
        with model.block(index) as block:
            tensors = {}
            for name, tensor in block.state_dict().items():
                for axis in range(tensor.dim()):
                    stacks, rest = divmod(tensor.shape[axis], units)
                    if name.startswith((*mlp.entering, mlp.leaving)) and not rest:
                        kept = [chunk.narrow(axis, 0, size) for chunk in tensor.chunk(stacks, dim=axis)]
                        tensors[prefix + name] = torch.cat(kept, dim=axis)
        parts.append(CompressedPart(prefix, {}, tensors, {}))
    return parts


def with_twins(model: StreamedModel) -> EditedModel:
    """The model with every hidden unit of every MLP there twice, each giving half."""
    mlp = architecture_named(model.inventory.model_type).mlp
    twins = EditedModel(model)
    for index in range(model.inventory.blocks):
        prefix = f"{model.inventory.block_prefix}.{index}."
        tensors = {}
        with model.block(index) as block:
            conv = not isinstance(block.get_submodule(mlp.leaving), torch.nn.Linear)
            for name, tensor in block.state_dict().items():
                module, leaf = name.rpartition(".")[::2]
                if module in mlp.entering:
                    axis = int(conv and leaf == "weight")
                    halves = tensor.chunk(mlp.stacked, dim=axis)
                    tensors[prefix + name] = torch.cat([torch.cat((half, half), dim=axis) for half in halves], dim=axis)
                elif module == mlp.leaving and leaf == "weight":
                    tensors[prefix + name] = torch.cat((tensor, tensor), dim=int(not conv)) / 2
        twins.apply(CompressedPart(prefix, {}, tensors, {}))
    return twins


@pytest.mark.parametrize("name", SOME)
def test_units_that_are_there_twice_cost_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width, "DAMPING", 1e-6)
    model = open_tiny(name, tmp_path)
    twins = with_twins(model)
    assert distance(model, twins) < 1e-5
    parts = narrowed(model, twins, intermediate_size(model.inventory))
    assert intermediate_size(twins.inventory) == 2 * intermediate_size(model.inventory)
    assert distance(model, EditedModel(twins, parts)) < 2e-3


@pytest.mark.parametrize("name", SOME)
def test_narrowing_beats_keeping_the_first_units(name: str, tmp_path: Path) -> None:
    model = open_tiny(name, tmp_path)
    size = intermediate_size(model.inventory) // 2
    found = EditedModel(model, narrowed(model, EditedModel(model), size))
    assert intermediate_size(found.inventory) == size
    assert distance(model, found) < 0.8 * distance(model, EditedModel(model, first_units(model, size)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_making_up_for_the_blocks_before_brings_the_stream_nearer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_tiny(name, tmp_path)
    half = EditedModel(model, narrowed(model, EditedModel(model), 24))
    monkeypatch.setattr(width, "COMPENSATION", 0.0)
    without = EditedModel(model, narrowed(model, EditedModel(model), 24))
    assert distance(model, half) < distance(model, without)


def test_the_bias_keeps_the_mean_of_what_the_mlp_gives_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width, "COMPENSATION", 0.0)
    model = open_tiny("gpt2", tmp_path)
    part = narrowed(model, EditedModel(model), 40)[0]
    means = []
    for edits in ({}, part.tensors):
        with model.block(0) as block, torch.no_grad():
            for name, tensor in edits.items():
                put(block, name.removeprefix("transformer.h.0."), tensor)
            written: list[Tensor] = []
            block.mlp.register_forward_hook(lambda _, __, output, written=written: written.append(output))
            model.run(block, 0, model.hidden(token_ids(8, 32)))
        means.append(written[0].mean((0, 1)))
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-4)


def test_only_blocks_that_remain_are_narrowed(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    removed = CompressedPart("depth", removed=(0,))
    parts = narrowed(model, EditedModel(model, [removed]), 24)
    assert [part.name for part in parts] == ["model.layers.1"]
    assert intermediate_size(EditedModel(model, [removed, *parts]).inventory) == 24


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_going_on_after_a_part_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    model = open_tiny(name, tmp_path)
    whole = narrowed(model, EditedModel(model), 24)
    step = Narrow(intermediate_size=24)
    (rest,) = taken(step, model, EditedModel(model), token_ids(8, 32), whole[:1])
    assert rest.name == whole[1].name
    assert rest.tensors.keys() == whole[1].tensors.keys()
    assert all(torch.equal(rest.tensors[name], whole[1].tensors[name]) for name in rest.tensors)


@pytest.mark.parametrize("name", sampled(NARROWABLE))
def test_every_architecture_can_be_narrowed(name: str, tmp_path: Path) -> None:
    model = open_tiny(name, tmp_path)
    parts = narrowed(model, EditedModel(model), 16, token_ids(2, 32))
    assert intermediate_size(EditedModel(model, parts).inventory) == 16
    assert all(0 < error < 1 for part in parts for error in part.errors.values())


@torch.no_grad()
def test_before_a_gap_a_block_is_fitted_to_what_the_original_has_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(width, "COMPENSATION", 1.0)
    original = open_tiny("llama", tmp_path)
    removed = CompressedPart("removed", removed=(1,))
    edited = EditedModel(original, [removed])
    parts = narrowed(original, edited, intermediate_size(original.inventory) - 1)
    wanted = entering(original, 2)
    before, after = (
        float((entering(model, 2) - wanted).norm()) for model in (edited, EditedModel(original, [removed, *parts]))
    )
    assert after < 0.9 * before


def entering(model: StreamedModel, index: int) -> Tensor:
    hidden = model.hidden(token_ids(8, 32))
    for each in range(index):
        with model.block(each) as block:
            hidden = model.run(block, each, hidden)
    return hidden
