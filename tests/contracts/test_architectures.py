"""One battery over every architecture: opened block by block, compressed, written, and opened by a stranger."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.packages import write_package
from tests.support.tiny_models import CONFIGS, save_tiny_model, tiny_model, token_ids
from workers.compression import structures
from workers.compression.formats.verification import Probe, Verified, verify_all
from workers.compression.models.streamed import StreamedModel
from workers.compression.spec.inventory import Site

STRUCTURES = ("low_rank", "pivoted", "kronecker", "sum")


@dataclass(frozen=True)
class RandomPart:
    """A part as the compressor yields it, with random factors."""

    structures: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Original:
    """A model as transformers wrote it, and what it computes and stores there."""

    directory: Path
    logits: Tensor
    parameters: int


@dataclass(frozen=True)
class Written:
    """A package, the logits of the model in memory that it was made of, and what a fresh process says of it."""

    directory: Path
    parameters: int
    logits: Tensor
    verified: Verified


def structure_for(kind: str, site: Site) -> dict[str, Any]:
    """A structure of the kind that fits the site."""
    match kind:
        case "kronecker":
            shapes = {"out": [site.out_features // 4, 4], "in": [site.in_features // 2, 2]}
            return {"kind": kind, "terms": 3, **shapes, "permute_in": True, "permute_out": True}
        case "sum":
            kinds = ("kronecker", "low_rank")
            return {"kind": kind, "parts": [structure_for(part, site) for part in kinds]}
        case _:
            return {"kind": kind, "rank": 5}


def randomise(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(std=0.3)
        else:
            tensor.copy_(torch.randperm(len(tensor)))


def compress_at_random(model: nn.Module, sites: Mapping[str, dict[str, Any]]) -> RandomPart:
    """Puts random structures into a model in memory, and gives them as a part."""
    torch.manual_seed(2)
    structures.replace(model, sites)
    tensors: dict[str, Tensor] = {}
    for name in sites:
        compact = model.get_submodule(name)
        randomise(compact)
        tensors |= {f"{name}.{key}": tensor.clone() for key, tensor in compact.state_dict().items()}
    return RandomPart(sites, tensors)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Original]:
    root = tmp_path_factory.mktemp("originals")
    found = {}
    for name in CONFIGS:
        model = save_tiny_model(name, root / name)
        stored = sum(parameter.numel() for parameter in model.parameters())
        found[name] = Original(root / name, logits_of(model), stored)
    return found


@pytest.fixture(scope="module")
def packages(originals: dict[str, Original], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """Every architecture, compressed in blocks, embedding and head, and opened in one fresh process for all."""
    root = tmp_path_factory.mktemp("packages")
    probes, counts = {}, {}
    for name, original in originals.items():
        inventory = StreamedModel.open(original.directory).inventory
        model = tiny_model(name)
        sites = {
            site.name: structure_for(kind, site) for site, kind in zip(inventory.sites, cycle(STRUCTURES), strict=False)
        }
        sites[inventory.embedding.name] = {"kind": "pivoted", "rank": 7}
        if inventory.head is None:
            sites["lm_head"] = {"kind": "tied", "to": inventory.embedding.name}
        else:
            sites[inventory.head.name] = {"kind": "pivoted", "rank": 9}
        part = compress_at_random(model, sites)
        package = write_package(original.directory, [part], root / name)
        probes[name] = Probe(package.directory, token_ids(), logits_of(model))
        counts[name] = package.parameters
    verified = dict(zip(probes, verify_all(list(probes.values()), timeout=120), strict=True))
    return {
        name: Written(probe.directory, counts[name], probe.logits, verified[name]) for name, probe in probes.items()
    }


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    logits: Tensor = model(token_ids()).logits
    return logits


def streamed_logits(directory: Path) -> Tensor:
    model = StreamedModel.open(directory)
    hidden = model.hidden(token_ids())
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    return model.logits(hidden)


@pytest.mark.parametrize("name", CONFIGS)
def test_streaming_computes_the_logits_of_the_whole_model(name: str, originals: dict[str, Original]) -> None:
    original = originals[name]
    torch.testing.assert_close(streamed_logits(original.directory), original.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_inventory_counts_what_the_model_stores(name: str, originals: dict[str, Original]) -> None:
    assert StreamedModel.open(originals[name].directory).inventory.total_parameters == originals[name].parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stranger_computes_the_logits_of_the_compressed_model(name: str, packages: dict[str, Written]) -> None:
    assert packages[name].verified.difference < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_streaming_a_package_computes_its_logits(name: str, packages: dict[str, Written]) -> None:
    torch.testing.assert_close(streamed_logits(packages[name].directory), packages[name].logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_package_in_one_piece_computes_its_logits(name: str, packages: dict[str, Written]) -> None:
    whole = StreamedModel.open(packages[name].directory).whole()
    torch.testing.assert_close(logits_of(whole), packages[name].logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_package_generates_with_a_cache_what_it_generates_without(name: str, packages: dict[str, Written]) -> None:
    model: Any = StreamedModel.open(packages[name].directory).whole()
    length = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
    prompt = token_ids()[:1, :6]
    with_cache, without = (model.generate(prompt, use_cache=cached, **length) for cached in (True, False))
    assert with_cache.shape[1] == 14
    assert torch.equal(with_cache, without)
