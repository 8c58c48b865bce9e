"""One battery over every architecture: opened block by block, compressed, written, and opened by a stranger."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelpress.spec.architectures import ARCHITECTURES
from modelpress.spec.config import read_config
from modelpress.spec.headers import read_safetensors_headers, stored_tensors
from modelpress.spec.inventory import Inventory
from modelpress.spec.stored import check_agreement, check_kinds
from tests.support.models import BLOCKS, MODELS, VOCABULARY, WIDTH, logits_of, sampled, save_tiny_model, token_ids
from tests.support.packages import Outcomes, factored, verified
from workers.compression.formats.safetensors import Safetensors
from workers.compression.formats.verification import Probe, Verified
from workers.compression.models.streamed import StreamedModel


@dataclass(frozen=True)
class Original:
    """A model as transformers wrote it, and what it computes and stores there."""

    directory: Path
    logits: Tensor
    parameters: int
    inventory: Inventory


@dataclass(frozen=True)
class Packaged:
    """A package, and the logits of the model in memory that it was made of."""

    directory: Path
    logits: Tensor


@pytest.fixture(scope="module")
def originals(names: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Outcomes[Original]:
    root = tmp_path_factory.mktemp("originals")

    def written(name: str) -> Original:
        model = save_tiny_model(name, root / name)
        # A tied head shares its table, which is listed twice.
        stored = sum(
            tensor.numel() for tensor in {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()
        )
        return Original(root / name, logits_of(model), stored, StreamedModel.open(root / name).inventory)

    return Outcomes(names, written)


@pytest.fixture(scope="module")
def packages(names: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Outcomes[Packaged]:
    """Every model, compressed in blocks, embedding and head."""
    root = tmp_path_factory.mktemp("packages")

    def packaged(name: str) -> Packaged:
        overlay, model = factored(name, root / f"{name}-original")
        return Packaged(Safetensors().write(overlay, root / name).directory, logits_of(model))

    return Outcomes(names, packaged)


@pytest.fixture(scope="module")
def opened(names: tuple[str, ...], packages: Outcomes[Packaged]) -> Outcomes[Verified]:
    return verified(Outcomes(names, lambda name: Probe(packages[name].directory, token_ids(), packages[name].logits)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_architecture_has_a_tiny_model(name: str, originals: Outcomes[Original]) -> None:
    inventory = originals[name].inventory
    sizes = (inventory.model_type, inventory.blocks, inventory.hidden_size, inventory.vocab_size)
    assert sizes == (name, BLOCKS, WIDTH, VOCABULARY)


@pytest.mark.parametrize("name", MODELS)
def test_streaming_computes_the_logits_of_the_whole_model(name: str, originals: Outcomes[Original]) -> None:
    streamed = logits_of(StreamedModel.open(originals[name].directory))
    torch.testing.assert_close(streamed, originals[name].logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_inventory_counts_what_the_model_stores(name: str, originals: Outcomes[Original]) -> None:
    assert originals[name].inventory.total_parameters == originals[name].parameters


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_writes_passes_the_checks_of_a_request(name: str, originals: Outcomes[Original]) -> None:
    directory = originals[name].directory
    check_kinds(config := read_config(directory), stored_tensors(directory))
    check_agreement(config, read_safetensors_headers(directory), originals[name].inventory)


@pytest.mark.parametrize("name", sampled(MODELS))
def test_a_stranger_computes_the_logits_of_the_compressed_model(name: str, opened: Outcomes[Verified]) -> None:
    assert opened[name].difference < 1e-5


@pytest.mark.parametrize("name", sampled(MODELS))
def test_streaming_a_package_computes_its_logits(name: str, packages: Outcomes[Packaged]) -> None:
    streamed = logits_of(StreamedModel.open(packages[name].directory))
    torch.testing.assert_close(streamed, packages[name].logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sampled(MODELS))
def test_a_package_in_one_piece_computes_its_logits(name: str, packages: Outcomes[Packaged]) -> None:
    whole = StreamedModel.open(packages[name].directory).whole()
    torch.testing.assert_close(logits_of(whole), packages[name].logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sampled(MODELS))
def test_a_package_generates_with_a_cache_what_it_generates_without(name: str, packages: Outcomes[Packaged]) -> None:
    model: Any = StreamedModel.open(packages[name].directory).whole()
    length = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
    prompt = token_ids()[:1, :6]
    with_cache, without = (model.generate(prompt, use_cache=cached, **length) for cached in (True, False))
    assert with_cache.shape[1] == 14
    assert torch.equal(with_cache, without)
