"""Every architecture with fewer blocks and narrower MLPs: run in memory, written, and opened by a stranger."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.packages import write_package
from tests.support.tiny_models import CONFIGS, logits_of, model_of, token_ids
from workers.compression import structures
from workers.compression.formats.verification import Probe, Verified, verify_all
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.spec.architectures import ARCHITECTURES
from workers.compression.spec.dimensions import resized_parameters

BLOCKS = 5
REMOVED = (0, 3)
KEPT = (1, 2, 4)
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
PROMPT, NEW_TOKENS = 4, 4


@dataclass(frozen=True)
class Written:
    """A package, the model in memory that it was made of, and what a fresh process says of it."""

    directory: Path
    parameters: int
    edited: EditedModel
    logits: Tensor
    verified: Verified


def save_deep_model(name: str, directory: Path) -> StreamedModel:
    """The tiny model with BLOCKS blocks, whose layer types no pattern describes once some are removed."""
    settings = CONFIGS[name].to_dict() | {"num_hidden_layers": BLOCKS, "layer_types": None}
    if name == "gpt2":
        settings["n_layer"] = settings.pop("num_hidden_layers")
    if name == "gemma3_text":
        settings["layer_types"] = LAYER_TYPES
    model_of(type(CONFIGS[name]).from_dict(settings)).save_pretrained(directory)
    return StreamedModel.open(directory)


def narrowed(model: StreamedModel, block: int, width: int) -> dict[str, Tensor]:
    """The tensors of the block's MLP with only the first `width` hidden units, scaled so that the edit is felt."""
    architecture = ARCHITECTURES[model.inventory.model_type]
    prefix = f"{model.inventory.block_prefix}.{block}"
    conv = architecture.layout == "conv1d"
    tensors: dict[str, Tensor] = {}
    stored = model.read(name for name in model.tensor_names if name.startswith(f"{prefix}."))
    for name, tensor in stored.items():
        module, leaf = name.removeprefix(f"{prefix}.").rpartition(".")[::2]
        if module in architecture.mlp.entering:
            axis = int(conv and leaf == "weight")
            stacked = tensor.chunk(architecture.mlp.stacked, dim=axis)
            tensors[name] = torch.cat([each.narrow(axis, 0, width) for each in stacked], dim=axis)
        elif module == architecture.mlp.leaving:
            tensors[name] = 1.5 * (tensor.narrow(int(not conv), 0, width) if leaf == "weight" else tensor)
    return tensors


def smaller(model: StreamedModel) -> list[CompressedPart]:
    removal = CompressedPart("depth", removed=REMOVED)
    return [removal, *(CompressedPart("width", {}, narrowed(model, block, 20), {}) for block in KEPT)]


def factored(model: EditedModel) -> CompressedPart:
    """Random low-rank factors for all sites of the last block and an embedding of lower rank."""
    torch.manual_seed(2)
    sites = {site.name: {"kind": "low_rank", "rank": 3} for site in model.inventory.sites_of(KEPT[-1])}
    sites[model.inventory.embedding.name] = {"kind": "low_rank", "rank": 7}
    skeleton = model.whole()
    places = {name.replace(f".{KEPT[-1]}.", f".{len(KEPT) - 1}."): form for name, form in sites.items()}
    structures.replace(skeleton, places)
    tensors: dict[str, Tensor] = {}
    for name, place in zip(sites, places, strict=True):
        for key, tensor in skeleton.get_submodule(place).state_dict().items():
            tensors[f"{name}.{key}"] = tensor.normal_(std=0.3).clone()
    return CompressedPart("factors", sites, tensors, {})


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, StreamedModel]]:
    root = tmp_path_factory.mktemp("originals")
    return {name: (root / name, save_deep_model(name, root / name)) for name in CONFIGS}


def written(root: Path, edited: Mapping[str, tuple[Path, list[CompressedPart], EditedModel]]) -> dict[str, Written]:
    """The packages of all models, opened in one fresh process."""
    packages = {name: write_package(source, parts, root / name) for name, (source, parts, _) in edited.items()}
    probes = [Probe(packages[name].directory, token_ids(), logits_of(model)) for name, (*_, model) in edited.items()]
    verified = verify_all(probes, timeout=120)
    return {
        name: Written(probe.directory, packages[name].parameters, edited[name][2], probe.logits, found)
        for name, probe, found in zip(edited, probes, verified, strict=True)
    }


@pytest.fixture(scope="module")
def plain(
    originals: dict[str, tuple[Path, StreamedModel]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Written]:
    edited = {}
    for name, (source, model) in originals.items():
        parts = smaller(model)
        edited[name] = (source, parts, EditedModel(model, parts))
    return written(tmp_path_factory.mktemp("plain"), edited)


@pytest.fixture(scope="module")
def hybrid(
    originals: dict[str, tuple[Path, StreamedModel]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Written]:
    edited = {}
    for name, (source, model) in originals.items():
        parts = smaller(model)
        parts.append(factored(EditedModel(model, parts)))
        edited[name] = (source, parts, EditedModel(model, parts))
    return written(tmp_path_factory.mktemp("hybrid"), edited)


def config_of(package: Written) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((package.directory / "config.json").read_text())
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_the_smaller_model_is_a_checkpoint_of_the_original_architecture(name: str, plain: dict[str, Written]) -> None:
    config = config_of(plain[name])
    assert config["model_type"] == CONFIGS[name].model_type
    assert "auto_map" not in config
    assert not list(plain[name].directory.glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stranger_computes_the_logits_of_the_model_in_memory(name: str, plain: dict[str, Written]) -> None:
    assert plain[name].verified.difference < 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stranger_computes_the_logits_with_factors_as_well(name: str, hybrid: dict[str, Written]) -> None:
    assert hybrid[name].verified.difference < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_with_a_cache_gives_what_it_gives_without(name: str, plain: dict[str, Written]) -> None:
    without = (
        plain[name]
        .edited.whole()
        .generate(
            token_ids()[:1, :PROMPT],
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=False,
        )
    )
    assert plain[name].verified.generated == tuple(without[0, PROMPT:].tolist())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_model_in_one_piece_computes_the_logits(
    name: str, plain: dict[str, Written], hybrid: dict[str, Written]
) -> None:
    for package in (plain[name], hybrid[name]):
        whole = package.edited.whole()
        torch.testing.assert_close(whole(token_ids()).logits, package.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_inventory_counts_what_the_package_stores(
    name: str, plain: dict[str, Written], hybrid: dict[str, Written]
) -> None:
    for package in (plain[name], hybrid[name]):
        assert package.edited.inventory.total_parameters == package.parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_what_it_will_store_is_known_beforehand(
    name: str, originals: dict[str, tuple[Path, StreamedModel]], plain: dict[str, Written]
) -> None:
    assert resized_parameters(originals[name][1].inventory, REMOVED, 20) == plain[name].parameters


def test_layer_types_stay_with_their_blocks(plain: dict[str, Written]) -> None:
    assert config_of(plain["gemma3_text"])["layer_types"] == [LAYER_TYPES[index] for index in KEPT]


def test_the_number_of_hidden_units_is_written_where_the_original_left_it_out(plain: dict[str, Written]) -> None:
    assert CONFIGS["gpt2"].n_inner is None
    assert config_of(plain["gpt2"])["n_inner"] == 20
    assert config_of(plain["gpt2"])["n_layer"] == len(KEPT)
