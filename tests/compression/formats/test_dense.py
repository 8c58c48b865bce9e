"""The dense export: an ordinary checkpoint that computes what the factored package computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelpress.spec.dimensions import resized_parameters
from tests.support.models import logits_of, save_tiny_model, tiny_model
from tests.support.packages import factored
from workers.compression.formats.dense import Dense
from workers.compression.formats.safetensors import Safetensors
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart

ARCHITECTURES = ("llama", "llama-tied", "gpt2", "gpt_neox", "gemma", "opt-projected", "phi3")


def whole_logits(directory: Path) -> Tensor:
    return logits_of(StreamedModel.open(directory).whole())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_computes_what_the_package_computes(name: str, tmp_path: Path) -> None:
    overlay = factored(name, tmp_path / "source")[0]
    package = Safetensors().write(overlay, tmp_path / "package").directory
    dense = Dense().write(overlay, tmp_path / "dense").directory
    torch.testing.assert_close(whole_logits(dense), whole_logits(package), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_it_holds_the_tensors_and_the_config_of_the_original(name: str, tmp_path: Path) -> None:
    dense = Dense().write(factored(name, tmp_path / "source")[0], tmp_path / "dense").directory
    config, original = (json.loads((path / "config.json").read_text()) for path in (dense, tmp_path / "source"))
    assert config.pop("dense_export") is True
    assert config == original | {"tie_word_embeddings": True}
    shapes, wanted = (
        {key: tensor.shape for key, tensor in load_file(path / "model.safetensors").items()}
        for path in (dense, tmp_path / "source")
    )
    assert shapes == wanted
    assert not list(dense.glob("*.py"))


def test_its_weights_have_the_dtype_of_the_original(tmp_path: Path) -> None:
    parts = factored("llama", tmp_path / "source")[0]
    tiny_model("llama").bfloat16().save_pretrained(tmp_path / "source")
    site = parts.original.inventory.sites[0].name
    factors = {f"{site}.{key}": parts.tensor(f"{site}.{key}") for key in ("first", "second")}
    part = CompressedPart("one", {site: parts.structures[site]}, factors, {})
    dense = Dense().write(Overlay.open(tmp_path / "source", [part]), tmp_path / "dense").directory
    assert {tensor.dtype for tensor in load_file(dense / "model.safetensors").values()} == {torch.bfloat16}


def test_removed_blocks_stay_removed(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "source")
    inventory = StreamedModel.open(tmp_path / "source").inventory
    site = "model.layers.1.mlp.up_proj"
    form: dict[str, Any] = {site: {"kind": "low_rank", "rank": 4}}
    factors = {f"{site}.first": torch.randn(4, 32), f"{site}.second": torch.randn(48, 4)}
    part = CompressedPart("one", form, factors, {}, removed=(0,))
    written = Dense().write(Overlay.open(tmp_path / "source", [part]), tmp_path / "dense")
    assert StreamedModel.open(written.directory).inventory.total_parameters == written.parameters
    assert written.parameters == resized_parameters(inventory, {0}, 48)


def test_a_model_without_factors_is_dense_already(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "source")
    with pytest.raises(ValueError, match="is dense already"):
        Dense().write(Overlay.open(tmp_path / "source"), tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
