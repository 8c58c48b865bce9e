"""What is found wrong with a model's files before anything is computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelpress.spec.errors import MalformedModel, NotFinite
from tests.support.models import save_tiny_model
from workers.compression.models.checked import check_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_tiny_model("llama", tmp_path)
    return tmp_path


def change_tensors(model: Path, **changes: Tensor) -> None:
    path = model / "model.safetensors"
    save_file(load_file(path) | {name.replace("__", "."): value for name, value in changes.items()}, path)


def change_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sound_model_passes(model: Path) -> None:
    check_model(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_that_is_not_finite_is_named_by_its_tensor(model: Path, value: float, dtype: torch.dtype) -> None:
    name = "model.embed_tokens.weight"
    table = load_file(model / "model.safetensors")[name].to(dtype)
    table[-1, 3] = value
    change_tensors(model, **{name.replace(".", "__"): table})
    with pytest.raises(NotFinite, match=name):
        check_model(model)


def test_a_tensor_without_a_place_is_named(model: Path) -> None:
    change_tensors(model, model__layers__0__self_attn__odd__weight=torch.zeros(2, 2))
    with pytest.raises(MalformedModel, match=r"layers\.0\.self_attn\.odd|same tensors"):
        check_model(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "evil"},
        {"rope_scaling": {"rope_type": "evil", "factor": 2.0}},
        {"pad_token_id": 10_000},
        {"layer_types": ["evil"]},
        {"num_attention_heads": 5, "head_dim": None},
    ],
)
def test_a_config_that_transformers_cannot_build_is_said_to_be_so(model: Path, changes: dict[str, Any]) -> None:
    change_config(model, **changes)
    with pytest.raises(MalformedModel, match="cannot build"):
        check_model(model)
