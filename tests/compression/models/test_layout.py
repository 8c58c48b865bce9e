"""The tensors of a transformers model, and those of the files that it reads and writes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.models import logits_of, save_tiny_model
from workers.compression.models.edited import EditedModel
from workers.compression.models.layout import Layout
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart

STACKED_IN_FILES = ("gpt_oss", "granitemoe")
LISTED_IN_FILES = ("mixtral", "qwen3_moe", "deepseek_v3")


@pytest.mark.parametrize("name", [*LISTED_IN_FILES, *STACKED_IN_FILES, "llama-tied"])
def test_the_tensors_of_the_files_make_those_of_the_model_and_back(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(name, tmp_path)
    files, layout = load_file(tmp_path / "model.safetensors"), Layout.of(model)
    expected = model.state_dict()
    sources = layout.sources(files)
    assert sources.keys() == expected.keys() - ({"lm_head.weight"} if name == "llama-tied" else set())
    for own, names in sources.items():
        merged = layout.merged(own, {each: files[each] for each in names})
        assert torch.equal(merged, expected[own])
        split = layout.split(own, merged)
        assert split.keys() == set(names)
        assert all(torch.equal(split[each], files[each]) for each in names)


@pytest.mark.parametrize("name", LISTED_IN_FILES)
def test_experts_that_files_have_one_by_one_are_one_tensor_of_the_model(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(name, tmp_path)
    sources = Layout.of(model).sources(load_file(tmp_path / "model.safetensors"))
    assert len(sources["model.layers.1.mlp.experts.gate_up_proj"]) == 2 * 4
    assert len(sources["model.layers.1.mlp.experts.down_proj"]) == 4


@pytest.mark.parametrize("name", LISTED_IN_FILES)
def test_a_file_may_have_the_experts_in_one_tensor_as_the_model_has(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(name, tmp_path / "listed")
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    assert "model.layers.1.mlp.experts.down_proj" in load_file(tmp_path / "stacked" / "model.safetensors")
    listed, stacked = (StreamedModel.open(tmp_path / kind) for kind in ("listed", "stacked"))
    assert stacked.inventory == listed.inventory
    torch.testing.assert_close(logits_of(stacked), logits_of(model))
    fewer = CompressedPart("fewer", experts={1: (0, 2, 3)})
    torch.testing.assert_close(logits_of(EditedModel(stacked, [fewer])), logits_of(EditedModel(listed, [fewer])))
