"""Compressing a whole model part by part, on tiny models of several architectures opened from real files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from workers.compression import structures
from workers.compression.accounting import Pivoted, Plan, uniform_plan
from workers.compression.models import StreamedModel
from workers.compression.sensitivity import measure
from workers.compression.sequential import CompressedPart, compress

TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 96},
    "gpt_neox": {},
    "phi3": {"pad_token_id": 0},
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}


def open_tiny(model_type: str, directory: Path) -> StreamedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **TINY[model_type]})
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return StreamedModel.open(directory)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than a tiny model's arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def calibration() -> Tensor:
    return torch.randint(80, (6, 32), generator=torch.Generator().manual_seed(1))


def assembled(directory: Path, parts: list[CompressedPart]) -> torch.nn.Module:
    """The compressed model as a whole: the original's tensors, less the replaced weights, plus those of the parts."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    for part in parts:
        structures.replace(model, part.structures)
    missing, unexpected = model.load_state_dict(
        {name: tensor for part in parts for name, tensor in part.tensors.items()}, strict=False
    )
    assert not unexpected
    assert not any(name.startswith(tuple(part.structures)) for part in parts for name in missing)
    return model.eval()


def count(model: torch.nn.Module) -> int:
    orders = sum(buffer.numel() for name, buffer in model.named_buffers() if ".order" in name)
    return orders + sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("model_type", "method"), [*((each, "kronecker") for each in TINY), ("llama", "svd")])
@torch.no_grad()
def test_the_parts_make_a_model_of_the_planned_size_near_the_original(
    model_type: str, method: str, tmp_path: Path
) -> None:
    model = open_tiny(model_type, tmp_path)
    plan = uniform_plan(model.inventory, method, 1.2)
    sensitivities = {name: found for part in measure(model, calibration()) for name, found in part.items()}
    parts = list(compress(model, plan, calibration(), sensitivities=sensitivities))
    compressed = assembled(tmp_path, parts)
    assert count(compressed) == plan.parameters_after
    assert set().union(*(part.structures for part in parts)) == set(plan.structures)
    original = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = original(calibration()).logits
    assert (compressed(calibration()).logits - expected).norm() < 0.5 * expected.norm()
    assert all(0 < error < 1 for part in parts for error in part.errors.values())


def test_going_on_after_a_part_gives_the_same_bytes(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    planned = uniform_plan(model.inventory, "kronecker", 1.3)
    structures = {**planned.structures, model.inventory.embedding.name: Pivoted(20)}
    plan = Plan("kronecker", structures, planned.parameters_before, planned.parameters_after)
    whole = list(compress(model, plan, calibration()))
    rest = list(
        compress(StreamedModel.open(tmp_path), plan, calibration(), start=2, finished=lambda index: whole[index])
    )
    assert [part.index for part in rest] == [part.index for part in whole[2:]]
    for again, before in zip(rest, whole[2:], strict=True):
        assert again.tensors.keys() == before.tensors.keys()
        assert all(torch.equal(again.tensors[name], before.tensors[name]) for name in before.tensors)


def test_resuming_without_the_finished_parts_is_refused(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    with pytest.raises(ValueError, match="where the finished parts are"):
        next(compress(model, uniform_plan(model.inventory, "svd", 1.1), calibration(), start=1))


def test_a_site_that_the_plan_leaves_out_stays_as_it_is(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    planned = uniform_plan(model.inventory, "kronecker", 1.2)
    name = "model.layers.1.mlp.down_proj"
    plan = Plan("kronecker", {name: planned.structures[name]}, planned.parameters_before, planned.parameters_after)
    parts = list(compress(model, plan, calibration()))
    assert [list(part.structures) for part in parts] == [[], [], [name], []]
