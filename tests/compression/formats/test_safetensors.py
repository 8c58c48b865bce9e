"""The main checkpoint: which files, which tensors, and what a fresh process says when it is not what it should be."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modelpress.spec.errors import VerificationFailed
from tests.support.models import save_tiny_model, token_ids
from tests.support.packages import write_package
from tests.support.text_models import byte_tokenizer
from workers.compression.evaluation.size import stored_size
from workers.compression.formats.safetensors import Safetensors
from workers.compression.formats.verification import Probe, verify, verify_all
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart

SITE = "model.layers.0.mlp.up_proj"


def low_rank_part(rank: int = 4) -> CompressedPart:
    tensors = {f"{SITE}.first": torch.randn(rank, 32), f"{SITE}.second": torch.randn(48, rank)}
    return CompressedPart("part", {SITE: {"kind": "low_rank", "rank": rank}}, tensors)


def stored_tensors_of(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    save_tiny_model("llama", directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def test_factors_take_the_place_of_the_weight_and_all_else_stays(source: Path, tmp_path: Path) -> None:
    part = low_rank_part()
    before = load_file(source / "model.safetensors")
    after = stored_tensors_of(write_package(source, [part], tmp_path / "package").directory)
    del before[f"{SITE}.weight"]
    assert after.keys() == before.keys() | part.tensors.keys()
    for name, tensor in (before | dict(part.tensors)).items():
        assert torch.equal(after[name], tensor)


def test_factors_are_stored_in_the_dtype_of_the_weight(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, source / "model.safetensors")
    after = stored_tensors_of(write_package(source, [low_rank_part()], tmp_path / "package").directory)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_parameters_and_bytes_are_those_on_disk(source: Path, tmp_path: Path) -> None:
    package = write_package(source, [low_rank_part()], tmp_path / "package")
    on_disk = stored_tensors_of(package.directory)
    assert package.parameters == sum(tensor.numel() for tensor in on_disk.values())
    assert stored_size(package.directory).parameters == package.parameters
    assert stored_size(package.directory).bytes == package.bytes == 4 * package.parameters
    assert StreamedModel.open(package.directory).inventory.total_parameters == package.parameters


def test_shards_hold_no_more_than_their_limit_and_open_again(source: Path, tmp_path: Path) -> None:
    limit = 20_000
    overlay = Overlay.open(source, [low_rank_part()])
    directory = Safetensors(shard_bytes=limit).write(overlay, tmp_path / "package").directory
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(set(index["weight_map"].values())) == shards
    for shard in shards:
        assert sum(tensor.nbytes for tensor in load_file(directory / shard).values()) <= limit
    StreamedModel.open(directory)


def test_sha256sums_covers_every_other_file(source: Path, tmp_path: Path) -> None:
    directory = write_package(source, [low_rank_part()], tmp_path / "package").directory
    sums = dict(reversed(line.split("  ")) for line in (directory / "SHA256SUMS").read_text().splitlines())
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "SHA256SUMS"}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_tokenizer_and_licence_come_along_and_nothing_else(source: Path, tmp_path: Path) -> None:
    (source / "LICENSE").write_text("Do as you like.")
    (source / "Notice.txt").write_text("Made by somebody.")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling_strange.py").write_text("raise SystemExit")
    directory = write_package(source, [low_rank_part()], tmp_path / "package").directory
    assert {path.name for path in directory.iterdir()} == {
        "LICENSE",
        "Notice.txt",
        "SHA256SUMS",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_compressed.py",
        "structures.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_without_structures_it_is_an_ordinary_checkpoint(source: Path, tmp_path: Path) -> None:
    part = CompressedPart("part", tensors={f"{SITE}.weight": torch.randn(48, 32)})
    directory = write_package(source, [part], tmp_path / "package").directory
    assert "auto_map" not in json.loads((directory / "config.json").read_text())
    assert not list(directory.glob("*.py"))
    assert torch.equal(stored_tensors_of(directory)[f"{SITE}.weight"], part.tensors[f"{SITE}.weight"])


def test_an_ordinary_checkpoint_has_the_name_of_the_head_that_every_release_reads(tmp_path: Path) -> None:
    save_tiny_model("gpt_neox", tmp_path / "source")
    directory = write_package(
        tmp_path / "source", [CompressedPart("part", removed=(0,))], tmp_path / "package"
    ).directory
    assert {name for name in stored_tensors_of(directory) if "gpt_neox" not in name} == {"embed_out.weight"}
    with torch.no_grad():
        logits = StreamedModel.open(directory).whole()(token_ids()).logits
    verify(directory, token_ids(), logits)


def test_a_factored_embedding_takes_a_tied_head_along(tmp_path: Path) -> None:
    save_tiny_model("llama-tied", tmp_path / "source")
    name = "model.embed_tokens"
    part = CompressedPart(
        "part",
        {name: {"kind": "low_rank", "rank": 4}},
        {f"{name}.codes": torch.randn(96, 4), f"{name}.mixing": torch.randn(4, 32)},
    )
    directory = write_package(tmp_path / "source", [part], tmp_path / "package").directory
    structures = json.loads((directory / "config.json").read_text())["compression"]["structures"]
    assert structures["lm_head"] == {"kind": "tied", "to": name}
    assert not any(key.startswith("lm_head") for key in stored_tensors_of(directory))


def test_nothing_appears_where_writing_fails(source: Path, tmp_path: Path) -> None:
    broken = CompressedPart("part", {SITE: {"kind": "low_rank", "rank": 4}}, {"model.unknown.first": torch.ones(1)})
    with pytest.raises(KeyError):
        write_package(source, [broken], tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_an_existing_directory_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    with pytest.raises(FileExistsError):
        write_package(source, [low_rank_part()], tmp_path / "package")


def test_without_trust_transformers_refuses_rather_than_guess(source: Path, tmp_path: Path) -> None:
    directory = write_package(source, [low_rank_part()], tmp_path / "package").directory
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)


@pytest.mark.parametrize("damage", ["tensor", "surplus"])
def test_verification_finds_the_damage(damage: str, source: Path, tmp_path: Path) -> None:
    directory = write_package(source, [low_rank_part()], tmp_path / "package").directory
    with torch.no_grad():
        logits = StreamedModel.open(directory).whole()(token_ids()).logits
    tensors = load_file(directory / "model.safetensors")
    if damage == "tensor":
        del tensors[f"{SITE}.first"]
    else:
        tensors["left.over"] = torch.ones(1)
    save_file(tensors, directory / "model.safetensors")
    complaint = {
        "tensor": "missing tensors: model.layers.0.mlp.up_proj.first",
        "surplus": "unexpected tensors: left.over",
    }[damage]
    with pytest.raises(VerificationFailed, match=complaint):
        verify(directory, token_ids(), logits)


def test_verification_tells_what_keeps_a_package_from_opening(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="does not open"):
        verify(tmp_path, token_ids(), torch.zeros(2, 12, 96))


def test_a_package_larger_than_memory_is_verified_too(source: Path, tmp_path: Path) -> None:
    directory = write_package(source, [low_rank_part()], tmp_path / "sound").directory
    with torch.no_grad():
        logits = StreamedModel.open(directory).whole()(token_ids()).logits
    changed = shutil.copytree(directory, tmp_path / "changed")
    probes = [Probe(directory, token_ids(), logits), Probe(changed, token_ids(), logits + 1)]
    with pytest.raises(VerificationFailed, match="changed computes other logits"):
        verify_all(probes, memory=30_000)


def model_class_of(directory: Path) -> Any:
    reference = json.loads((directory / "config.json").read_text())["auto_map"]["AutoModel"]
    return get_class_from_dynamic_module(reference, directory)


def test_servers_are_told_that_they_cannot_compute_with_a_factored_embedding(source: Path, tmp_path: Path) -> None:
    embedding = CompressedPart(
        "embedding",
        {"model.embed_tokens": {"kind": "low_rank", "rank": 4}},
        {"model.embed_tokens.codes": torch.randn(96, 4), "model.embed_tokens.mixing": torch.randn(4, 32)},
    )
    factored = write_package(source, [embedding], tmp_path / "embedding").directory
    with pytest.raises(ValueError, match="Serve the dense export"):
        model_class_of(factored).is_backend_compatible()
    matrices = write_package(source, [low_rank_part()], tmp_path / "matrices").directory
    assert model_class_of(matrices).is_backend_compatible()
