"""Every architecture with fewer blocks and narrower MLPs: run in memory, written, and opened by a stranger."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelpress.spec.architectures import architecture_named
from modelpress.spec.dimensions import has_narrowable_mlps, parameters_without, resized_parameters
from tests.support.models import MODELS, PATTERNED, logits_of, open_tiny, sampled, tiny_config, token_ids
from tests.support.packages import Outcomes, verified, write_package
from workers.compression import structures
from workers.compression.formats.verification import Probe, Verified
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart

BLOCKS = 5
REMOVED = (0, 3)
KEPT = (1, 2, 4)
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
PROMPT, NEW_TOKENS = 4, 4
TYPES = {name: architecture_named(tiny_config(name).model_type) for name in MODELS}
SHORTENED = [name for name, architecture in TYPES.items() if not (architecture.mixed or architecture.fixed_depth)]
"""Models that may lose blocks: all are of one kind, and compute the same whatever their number."""


@dataclass(frozen=True)
class Smaller:
    """A package, and the models in memory that it was made of."""

    directory: Path
    parameters: int
    original: StreamedModel
    edited: EditedModel
    logits: Tensor


def open_deep_model(name: str, directory: Path) -> StreamedModel:
    """The tiny model with BLOCKS blocks, whose layer types no pattern describes once some are removed."""
    mixed = name == "gemma3_text" or name in PATTERNED
    changes = {"layer_types": LAYER_TYPES} if mixed else {}
    return open_tiny(name, directory, num_hidden_layers=BLOCKS, **changes)


def narrowed(model: StreamedModel, block: int, width: int) -> dict[str, Tensor]:
    """The tensors of the block's MLP with only the first `width` hidden units, scaled so that the edit is felt."""
    architecture = architecture_named(model.inventory.model_type)
    prefix = f"{model.inventory.block_prefix}.{block}."
    conv = architecture.layout == "conv1d"
    tensors: dict[str, Tensor] = {}
    with model.block(block) as whole:
        stored = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for name, tensor in stored.items():
        module, leaf = name.rpartition(".")[::2]
        if module in architecture.mlp.entering:
            axis = int(conv and leaf == "weight")
            stacked = tensor.chunk(architecture.mlp.stacked, dim=axis)
            tensors[prefix + name] = torch.cat([each.narrow(axis, 0, width) for each in stacked], dim=axis)
        elif module == architecture.mlp.leaving:
            tensors[prefix + name] = 1.5 * (tensor.narrow(int(not conv), 0, width) if leaf == "weight" else tensor)
    return tensors


def smaller(model: StreamedModel) -> list[CompressedPart]:
    removal = CompressedPart("depth", removed=REMOVED)
    if not has_narrowable_mlps(model.inventory):
        return [removal]
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
def originals(names: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Outcomes[tuple[Path, StreamedModel]]:
    root = tmp_path_factory.mktemp("originals")
    return Outcomes(names, lambda name: (root / name, open_deep_model(name, root / name)))


def written(source: Path, model: StreamedModel, parts: list[CompressedPart], directory: Path) -> Smaller:
    edited, package = EditedModel(model, parts), write_package(source, parts, directory)
    return Smaller(package.directory, package.parameters, model, edited, logits_of(edited))


def opened_by_a_stranger(names: tuple[str, ...], packages: Outcomes[Smaller]) -> Outcomes[Verified]:
    return verified(Outcomes(names, lambda name: Probe(packages[name].directory, token_ids(), packages[name].logits)))


@pytest.fixture(scope="module")
def plain(
    names: tuple[str, ...],
    originals: Outcomes[tuple[Path, StreamedModel]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcomes[Smaller]:
    root = tmp_path_factory.mktemp("plain")

    def made(name: str) -> Smaller:
        source, model = originals[name]
        return written(source, model, smaller(model), root / name)

    return Outcomes(names, made)


@pytest.fixture(scope="module")
def opened(names: tuple[str, ...], plain: Outcomes[Smaller]) -> Outcomes[Verified]:
    return opened_by_a_stranger(names, plain)


@pytest.fixture(scope="module")
def hybrid(
    names: tuple[str, ...],
    originals: Outcomes[tuple[Path, StreamedModel]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcomes[Smaller]:
    root = tmp_path_factory.mktemp("hybrid")

    def made(name: str) -> Smaller:
        source, model = originals[name]
        parts = smaller(model)
        return written(source, model, [*parts, factored(EditedModel(model, parts))], root / name)

    return Outcomes(names, made)


@pytest.fixture(scope="module")
def hybrid_opened(names: tuple[str, ...], hybrid: Outcomes[Smaller]) -> Outcomes[Verified]:
    return opened_by_a_stranger(names, hybrid)


def config_of(package: Smaller) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((package.directory / "config.json").read_text())
    return config


@pytest.mark.parametrize("name", sampled(SHORTENED))
def test_the_smaller_model_is_a_checkpoint_of_the_original_architecture(name: str, plain: Outcomes[Smaller]) -> None:
    config = config_of(plain[name])
    assert config["model_type"] == plain[name].original.inventory.model_type
    assert "auto_map" not in config
    assert not list(plain[name].directory.glob("*.py"))


@pytest.mark.parametrize("name", sampled(SHORTENED))
def test_a_stranger_computes_the_logits_of_the_model_in_memory(name: str, opened: Outcomes[Verified]) -> None:
    assert opened[name].difference < 1e-6


@pytest.mark.parametrize("name", sampled(SHORTENED))
def test_a_stranger_computes_the_logits_with_factors_as_well(name: str, hybrid_opened: Outcomes[Verified]) -> None:
    assert hybrid_opened[name].difference < 1e-5


@pytest.mark.parametrize("name", sampled(SHORTENED))
def test_generation_with_a_cache_gives_what_it_gives_without(
    name: str, plain: Outcomes[Smaller], opened: Outcomes[Verified]
) -> None:
    whole: Any = plain[name].edited.whole()
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    without = whole.generate(token_ids()[:1, :PROMPT], use_cache=False, **length)
    assert opened[name].generated == tuple(without[0, PROMPT:].tolist())


@pytest.mark.parametrize("name", sampled(SHORTENED))
def test_the_model_in_one_piece_computes_the_logits(
    name: str, plain: Outcomes[Smaller], hybrid: Outcomes[Smaller]
) -> None:
    for package in (plain[name], hybrid[name]):
        torch.testing.assert_close(logits_of(package.edited.whole()), package.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sampled(SHORTENED))
def test_the_inventory_counts_what_the_package_stores(
    name: str, plain: Outcomes[Smaller], hybrid: Outcomes[Smaller]
) -> None:
    for package in (plain[name], hybrid[name]):
        assert package.edited.inventory.total_parameters == package.parameters


@pytest.mark.parametrize("name", sampled(SHORTENED))
def test_what_it_will_store_is_known_beforehand(
    name: str, originals: Outcomes[tuple[Path, StreamedModel]], plain: Outcomes[Smaller]
) -> None:
    inventory = originals[name][1].inventory
    narrowable = has_narrowable_mlps(inventory)
    planned = resized_parameters(inventory, REMOVED, 20) if narrowable else parameters_without(inventory, REMOVED)
    assert planned == plain[name].parameters


@pytest.mark.parametrize("name", ["gemma3_text"])
def test_layer_types_stay_with_their_blocks(name: str, plain: Outcomes[Smaller]) -> None:
    assert config_of(plain[name])["layer_types"] == [LAYER_TYPES[index] for index in KEPT]


@pytest.mark.parametrize("name", ["gpt2"])
def test_the_number_of_hidden_units_is_written_where_the_original_left_it_out(
    name: str, plain: Outcomes[Smaller]
) -> None:
    assert tiny_config(name).n_inner is None
    assert config_of(plain[name])["n_inner"] == 20
    assert config_of(plain[name])["n_layer"] == len(KEPT)
