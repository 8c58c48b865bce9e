"""A checkpoint with matrices in integer codes: what it holds, who opens it, and what it computes."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from modelpress.spec.architectures import architecture_named
from modelpress.spec.codes import CODES
from modelpress.spec.packing import NotStorable, storable
from tests.support.codes import rounded_part
from tests.support.models import MODELS, SAMPLE, logits_of, save_tiny_model, tiny_config, tiny_model, token_ids
from tests.support.packages import Outcomes, verified
from workers.compression.formats.safetensors import Safetensors
from workers.compression.formats.verification import Probe, Verified
from workers.compression.models.edited import EditedModel
from workers.compression.models.layout import Layout
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Original, Overlay
from workers.compression.parts import CompressedPart

LINEAR = [name for name in MODELS if name != "gpt2" and architecture_named(tiny_config(name).model_type).packable]
ROUNDED_OUTSIDE = ("llama-tied", "gemma3_text", "gpt_neox")
SITE, EMBEDDING = "model.layers.1.self_attn.q_proj", "model.embed_tokens"


def codes_of(original: Original, *, outside: str | None = None) -> dict[str, str]:
    """Return int4 for every matrix in the blocks that it fits, int8 for the others, and `outside` for embedding and
    head."""
    inventory = original.inventory
    four = CODES["int4_g32"]
    codes = {site.name: "int8" if storable(four, site) else four.name for site in inventory.sites}
    if outside:
        codes |= {site.name: outside for site in (inventory.embedding, inventory.head) if site}
    return codes


def write(source: Path, destination: Path, codes: Mapping[str, str]) -> Overlay:
    """Write the model in `source` with some of its matrices rounded, and return it."""
    original = Original.read(source)
    overlay = Overlay(original, [rounded_part(original, codes)])
    Safetensors().write(overlay, destination)
    return overlay


def config_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def schemes_of(directory: Path) -> dict[str, tuple[int, int | None]]:
    """Return {target: (bits, group size)} as config.json states them."""
    groups = config_of(directory)["quantization_config"]["config_groups"].values()
    return {
        target: (group["weights"]["num_bits"], group["weights"].get("group_size"))
        for group in groups
        for target in group["targets"]
    }


@torch.no_grad()
def opened(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Open the model as a client does; the integers become floating-point weights at the first forward pass."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, trust_remote_code=True)
    model(token_ids())
    return model


def parameter(model: PreTrainedModel, name: str, head: str) -> Tensor:
    module = model.get_output_embeddings() if name == f"{head}.weight" else None
    inside, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(inside), leaf) if module is None else module.weight
    return found


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        *(pytest.param(name, "int8", marks=() if name in SAMPLE else pytest.mark.full) for name in LINEAR),
        ("phi3", None),
        ("gpt_neox", None),
    ],
)
def test_every_architecture_opens_with_exactly_the_rounded_weights(
    name: str, outside: str | None, tmp_path: Path
) -> None:
    tiny_model(name).bfloat16().save_pretrained(tmp_path / "source")
    codes = codes_of(Original.read(tmp_path / "source"), outside=outside)
    overlay = write(tmp_path / "source", tmp_path / "package", codes)
    model = opened(tmp_path / "package", torch.bfloat16)
    layout = Layout.of(model)
    for own, names in layout.sources(overlay.tensor_names()).items():
        expected = layout.merged(own, {each: overlay.tensor(each).bfloat16() for each in names})
        assert torch.equal(parameter(model, own, overlay.architecture.head), expected)


@pytest.fixture(scope="module")
def rounded_outside(tmp_path_factory: pytest.TempPathFactory) -> Outcomes[Verified]:
    """The verdicts of a fresh process on packages whose embedding and head are rounded, too."""

    def written(name: str) -> Probe:
        place = tmp_path_factory.mktemp(name)
        save_tiny_model(name, place / "source")
        original = Original.read(place / "source")
        codes = codes_of(original, outside="int8")
        write(place / "source", place / "package", codes)
        edited = EditedModel(StreamedModel.open(place / "source"), [rounded_part(original, codes)])
        return Probe(place / "package", token_ids(), logits_of(edited.whole()))

    return verified(Outcomes(ROUNDED_OUTSIDE, written))


@pytest.mark.parametrize("name", ROUNDED_OUTSIDE)
def test_a_fresh_process_without_anything_of_ours_computes_with_a_rounded_embedding(
    name: str, rounded_outside: Outcomes[Verified]
) -> None:
    found = rounded_outside[name]
    assert found.difference < 1e-5
    assert found.parameters == sum(parameter.numel() for parameter in tiny_model(name).parameters())
    assert (found.engine, found.version) == (
        "transformers",
        f"{version('transformers')} with compressed-tensors {version('compressed-tensors')}",
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_tiny_model("llama-tied", tmp_path / "source", hidden_size=128, intermediate_size=64, num_hidden_layers=3)
    return tmp_path / "source"


def test_each_layer_may_have_a_code_of_its_own(source: Path, tmp_path: Path) -> None:
    codes = {
        "model.layers.0.mlp.up_proj": "int4_g128",
        "model.layers.1.mlp.up_proj": "int4_g64",
        "model.layers.2.mlp.up_proj": "int4_g128",
        SITE: "int8",
    }
    overlay = write(source, tmp_path / "package", codes)
    assert schemes_of(tmp_path / "package") == {
        r"re:.*layers\.(?:0|2)\.mlp\.up_proj$": (4, 128),
        r"re:.*layers\.(?:1)\.mlp\.up_proj$": (4, 64),
        r"re:.*layers\.(?:1)\.self_attn\.q_proj$": (8, None),
    }
    model = opened(tmp_path / "package", torch.float32)
    for name in codes:
        assert torch.equal(model.get_parameter(f"{name}.weight"), overlay.tensor(f"{name}.weight"))


def test_one_pattern_describes_a_kind_of_matrix_that_has_one_code_in_all_blocks(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "package", {f"model.layers.{block}.mlp.up_proj": "int4_g32" for block in range(3)})
    assert schemes_of(tmp_path / "package") == {r"re:.*layers\.\d+\.mlp\.up_proj$": (4, 32)}


def test_what_is_not_rounded_is_named(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "package", codes_of(Original.read(source)))
    assert config_of(tmp_path / "package")["quantization_config"]["ignore"] == [EMBEDDING, "lm_head"]


def test_the_file_has_the_bytes_that_the_codes_promise(source: Path, tmp_path: Path) -> None:
    tiny = tiny_model("llama-tied", hidden_size=128, intermediate_size=64).bfloat16()
    tiny.save_pretrained(tmp_path / "half")
    overlay = write(tmp_path / "half", tmp_path / "package", {EMBEDDING: "int4_g64", SITE: "int8"})
    stored = load_file(tmp_path / "package" / "model.safetensors")
    for module, code in ((EMBEDDING, "int4_g64"), (SITE, "int8")):
        rows, columns = overlay.shapes[f"{module}.weight"]
        held = sum(stored[f"{module}.{suffix}"].nbytes for suffix in ("weight_packed", "weight_scale"))
        assert held == CODES[code].bytes(rows, columns)


def test_a_tied_table_is_stored_once(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "package", {EMBEDDING: "int8"})
    assert config_of(tmp_path / "package")["tie_word_embeddings"] is True
    stored = load_file(tmp_path / "package" / "model.safetensors")
    assert not [name for name in stored if name.startswith("lm_head")]


def test_a_rounded_embedding_alone_needs_remote_code(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "blocks", codes_of(Original.read(source)))
    write(source, tmp_path / "embedding", {EMBEDDING: "int8"})
    assert "auto_map" not in config_of(tmp_path / "blocks")
    assert (tmp_path / "embedding" / "modeling_packed.py").is_file()
    assert config_of(tmp_path / "embedding")["architectures"] == ["LlamaForCausalLM"]


def test_removed_blocks_stay_removed(source: Path, tmp_path: Path) -> None:
    original = Original.read(source)
    parts = [rounded_part(original, {SITE: "int8"}), CompressedPart("part", removed=(0,))]
    Safetensors().write(Overlay(original, parts), tmp_path / "package")
    stored = load_file(tmp_path / "package" / "model.safetensors")
    assert "model.layers.0.self_attn.q_proj.weight_packed" in stored
    assert schemes_of(tmp_path / "package") == {r"re:.*layers\.(?:0)\.self_attn\.q_proj$": (8, None)}


def test_an_architecture_with_transposed_matrices_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    save_tiny_model("gpt2", tmp_path / "source")
    with pytest.raises(NotStorable, match=r"h\.0\.mlp\.c_fc is stored transposed"):
        write(tmp_path / "source", tmp_path / "package", {"transformer.h.0.mlp.c_fc": "int8"})
    assert not (tmp_path / "package").exists()


def test_factored_layers_in_codes_are_refused(source: Path, tmp_path: Path) -> None:
    original = Original.read(source)
    factors = {f"{SITE}.first": torch.ones(4, 128), f"{SITE}.second": torch.ones(128, 4)}
    factored = CompressedPart("factored", {SITE: {"kind": "low_rank", "rank": 4}}, factors)
    overlay = Overlay(original, [rounded_part(original, {EMBEDDING: "int8"}), factored])
    with pytest.raises(NotStorable, match="factored"):
        Safetensors().write(overlay, tmp_path / "package")


def test_a_code_of_another_format_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotStorable, match="compressed-tensors has no code q8_0"):
        write(source, tmp_path / "package", {SITE: "q8_0"})
