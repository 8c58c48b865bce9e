"""The compact layers: what they compute, what they store, and how they behave where models are used."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modelpress.spec.structures import structure_from_dict
from workers.compression.structures import CompactEmbedding, CompactLinear, build, build_embedding, replace

KRONECKER: dict[str, Any] = {"kind": "kronecker", "terms": 3, "permute_in": True, "permute_out": True}
FORMS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "low rank": (24, 40, {"kind": "low_rank", "rank": 7}),
    "pivot rows": (24, 40, {"kind": "pivoted", "rank": 9}),
    "pivot columns": (40, 24, {"kind": "pivoted", "rank": 9}),
    "folded pivots": (40, 24, {"kind": "pivoted", "rank": 9, "folded": True}),
    "nearly full rank": (24, 24, {"kind": "pivoted", "rank": 23}),
    "kronecker, right first": (24, 40, {**KRONECKER, "out": [4, 6], "in": [20, 2]}),
    "kronecker, left first": (24, 40, {**KRONECKER, "out": [3, 8], "in": [4, 10]}),
}
EMBEDDINGS: list[dict[str, Any]] = [
    {"kind": "low_rank", "rank": 5},
    {"kind": "pivoted", "rank": 5},
    {"kind": "halved", "times": 2},
    {"kind": "kronecker", "terms": 2, "out": [30, 1], "in": [4, 3], "permute_in": True},
]


def randomised(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    for name, order in module.named_buffers():
        if "order" in name:
            order.copy_(torch.randperm(order.numel(), generator=generator))


def layer(name: str, bias: bool = True) -> CompactLinear:
    out_features, in_features, form = FORMS[name]
    module = build(form, in_features, out_features, bias)
    randomised(module)
    return module


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("tokens", [1, 5, 400])
@pytest.mark.parametrize("name", FORMS)
def test_the_output_is_that_of_the_dense_matrix(name: str, tokens: int) -> None:
    module = layer(name)
    inputs = torch.randn(2, tokens, module.in_features)
    assert relative(module(inputs), nn.functional.linear(inputs, module.dense(), module.bias)) < 1e-5


@pytest.mark.parametrize("name", FORMS)
def test_what_is_stored_is_what_is_counted(name: str) -> None:
    out_features, in_features, form = FORMS[name]
    found = sum(tensor.numel() for tensor in layer(name, bias=False).state_dict().values())
    assert found == structure_from_dict(form).parameters(out_features, in_features)


@pytest.mark.parametrize("name", FORMS)
def test_gradients_reach_every_factor_and_the_input(name: str) -> None:
    module = layer(name)
    inputs = torch.randn(3, module.in_features, requires_grad=True)
    module(inputs).square().sum().backward()
    assert inputs.grad is not None
    dense = nn.functional.linear(inputs, module.dense(), module.bias)
    assert relative(inputs.grad, 2 * dense @ module.dense()) < 1e-4
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("name", FORMS)
def test_half_precision_stays_near_full_precision(name: str) -> None:
    module = layer(name)
    inputs = torch.randn(4, module.in_features)
    outputs = copy.deepcopy(module).bfloat16()(inputs.bfloat16())
    assert outputs.dtype == torch.bfloat16
    assert relative(outputs.float(), module(inputs)) < 0.03


@pytest.mark.parametrize("name", ["pivot rows", "pivot columns", "kronecker, right first"])
def test_a_layer_compiles_without_a_graph_break(name: str) -> None:
    module = layer(name)
    inputs = torch.randn(4, module.in_features)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert relative(compiled(inputs), module(inputs)) < 1e-6


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_an_embedding_looks_up_and_projects_with_one_table(form: dict[str, Any]) -> None:
    embedding = build_embedding(form, 30, 12, scale=3.0)
    randomised(embedding)
    ids, hidden = torch.tensor([[0, 29, 7]]), torch.randn(2, 12)
    assert relative(embedding(ids), 3.0 * embedding.dense()[ids]) < 1e-6
    assert relative(embedding.logits(hidden), hidden @ embedding.dense().T) < 1e-5


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_an_embedding_stores_what_is_counted(form: dict[str, Any]) -> None:
    found = sum(tensor.numel() for tensor in build_embedding(form, 30, 12).state_dict().values())
    assert found == structure_from_dict(form).parameters(30, 12)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        conv = Conv1D(12, 8)
        self.blocks = nn.ModuleList([nn.ModuleDict({"linear": nn.Linear(12, 8), "conv": conv})])
        self.head = nn.Linear(12, 30, bias=False)


def test_every_kind_of_module_is_replaced_in_its_place() -> None:
    model = Model()
    forms = {
        "head": {"kind": "tied", "to": "embedding"},
        "embedding": EMBEDDINGS[1],
        "blocks.0.linear": {"kind": "pivoted", "rank": 3},
        "blocks.0.conv": {"kind": "low_rank", "rank": 2},
    }
    replace(model, forms)
    assert isinstance(model.embedding, CompactEmbedding)
    assert {name.partition(".")[0] for name in model.state_dict()} == {"embedding", "blocks"}
    hidden = model.embedding(torch.tensor([1, 2]))
    inner = model.get_submodule("blocks.0.linear")(hidden)
    assert model.get_submodule("blocks.0.conv")(inner).shape == (2, 12)
    assert model.head(hidden).shape == (2, 30)


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError):
        replace(Model(), {"blocks.0.missing": {"kind": "low_rank", "rank": 1}})


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown structure 'magic'"):
        build({"kind": "magic"}, 4, 4, bias=False)
