"""A checkpoint with integers for its matrices: what it holds, what a client opens, what it is worth."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.models import MODELS, save_tiny_model, tiny_model, token_ids
from tests.support.text_models import byte_tokenizer
from workers.compression.evaluation.size import stored_size
from workers.compression.formats import Written, writer_of
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart
from workers.compression.spec.quantisation import NotQuantisable

LINEAR = [name for name in MODELS if name != "gpt2"]
SITE = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    save_tiny_model("llama-tied", directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def quantise(source: Path, destination: Path, scheme: str) -> Written:
    """The model in `source` as it is, written in the format of that name."""
    return writer_of(scheme).write(Overlay.open(source), destination)


def opened(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """As a client opens it; the integers become floating numbers at the first forward pass."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model(token_ids()).logits
    return found


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", LINEAR)
def test_every_weight_of_a_reopened_model_is_the_nearest_step_or_the_original(
    name: str, scheme: str, tmp_path: Path
) -> None:
    original = save_tiny_model(name, tmp_path / "source")
    quantise(tmp_path / "source", tmp_path / scheme, scheme)
    model = opened(tmp_path / scheme)
    logits(model)
    scales = {
        stored.removesuffix("_scale"): scale
        for stored, scale in load_file(tmp_path / scheme / "model.safetensors").items()
        if stored.endswith(".weight_scale")
    }
    assert len(scales) == len(StreamedModel.open(tmp_path / "source").inventory.sites)
    reopened = model.state_dict()
    for stored, weight in original.state_dict().items():
        if stored not in scales:
            assert torch.equal(reopened[stored], weight)
            continue
        step = scales[stored].repeat_interleave(weight.shape[1] // scales[stored].shape[1], dim=1)
        assert ((reopened[stored] - weight).abs() <= 0.501 * step).all()


def test_a_width_that_groups_do_not_divide_is_kept_at_eight_bits(source: Path, tmp_path: Path) -> None:
    quantise(source, tmp_path / "int4", "int4")
    stored = load_file(tmp_path / "int4" / "model.safetensors")
    assert stored[f"{SITE}.weight_packed"].shape == (32, 32 * 4 // 32)
    assert stored["model.layers.1.mlp.down_proj.weight_packed"].shape == (32, 48 * 8 // 32)


def test_bytes_are_those_on_disk_and_parameters_those_that_are_stood_for(source: Path, tmp_path: Path) -> None:
    package = quantise(source, tmp_path / "int8", "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert package.bytes == sum(tensor.nbytes for tensor in stored.values())
    assert package.parameters == stored_size(source).parameters


def test_fewer_bits_take_fewer_bytes_and_lie_farther_from_the_original(source: Path, tmp_path: Path) -> None:
    eight, four = (quantise(source, tmp_path / scheme, scheme) for scheme in ("int8", "int4"))
    exact = logits(tiny_model("llama-tied"))
    errors = [float((logits(opened(it.directory)) - exact).norm()) for it in (eight, four)]
    assert four.bytes < eight.bytes < stored_size(source).bytes
    assert 0 < errors[0] < errors[1]


def test_the_same_source_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    once, again = (quantise(source, tmp_path / name, "int4").directory for name in ("once", "again"))
    for name in ("model.safetensors", "config.json"):
        assert (once / name).read_bytes() == (again / name).read_bytes()


def test_scales_are_stored_in_the_dtype_of_the_weights(tmp_path: Path) -> None:
    tiny_model("qwen2").bfloat16().save_pretrained(tmp_path / "source")
    quantise(tmp_path / "source", tmp_path / "int8", "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert stored[f"{SITE}.weight_scale"].dtype == torch.bfloat16


def test_the_head_is_named_as_left_out(source: Path, tmp_path: Path) -> None:
    quantise(source, tmp_path / "int8", "int8")
    stated = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    assert (stated["quant_method"], stated["format"]) == ("compressed-tensors", "pack-quantized")
    assert stated["ignore"] == ["lm_head"]


def test_the_tokenizer_comes_along(source: Path, tmp_path: Path) -> None:
    quantise(source, tmp_path / "int8", "int8")
    assert (tmp_path / "int8" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_the_restored_numbers_are_those_that_a_client_computes_with(
    scheme: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny_model("qwen2").bfloat16().save_pretrained(tmp_path / "source")
    quantise(tmp_path / "source", tmp_path / scheme, scheme)
    writer_of(scheme).restore(tmp_path / scheme, tmp_path / "restored")
    restored = StreamedModel.open(tmp_path / "restored", dtype=dtype).whole().state_dict()
    model = opened(tmp_path / scheme, dtype)
    logits(model)
    for name, weight in restored.items():
        assert torch.equal(model.get_parameter(name), weight)


def test_an_architecture_with_transposed_matrices_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    save_tiny_model("gpt2", tmp_path / "source")
    with pytest.raises(NotQuantisable):
        quantise(tmp_path / "source", tmp_path / "int8", "int8")
    assert not (tmp_path / "int8").exists()


def test_factored_layers_are_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    factors = {f"{SITE}.first": torch.ones(4, 32), f"{SITE}.second": torch.ones(32, 4)}
    part = CompressedPart("part", {SITE: {"kind": "low_rank", "rank": 4}}, factors, {})
    with pytest.raises(NotQuantisable, match="factored"):
        writer_of("int8").write(Overlay.open(source, [part]), tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_removed_blocks_stay_removed(source: Path, tmp_path: Path) -> None:
    overlay = Overlay.open(source, [CompressedPart("part", {}, {}, {}, removed=(0,))])
    written = writer_of("int8").write(overlay, tmp_path / "int8")
    stored = load_file(written.directory / "model.safetensors")
    assert "model.layers.0.self_attn.q_proj.weight_packed" in stored
    assert not any(name.startswith("model.layers.1.") for name in stored)
    assert written.parameters == overlay.inventory.total_parameters


def test_a_directory_that_is_there_already_is_left_alone(source: Path) -> None:
    with pytest.raises(FileExistsError):
        quantise(source, source, "int8")
