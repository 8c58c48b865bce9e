"""Every architecture whose attention can be narrowed: run in memory, written, and opened by a stranger."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.packages import write_package
from tests.support.planning import taken
from tests.support.tiny_models import CONFIGS, logits_of, model_of, token_ids
from workers.compression.formats.verification import Probe, Verified, verify_all
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.spec.architectures import ARCHITECTURES
from workers.compression.spec.dimensions import narrowed
from workers.compression.spec.heads import regrouped
from workers.compression.spec.steps import Narrow

PROMPT, NEW_TOKENS = 4, 4
UNITS = 40
STEP = Narrow(intermediate_size=UNITS, key_value_heads=1)
MODELS: dict[str, dict[str, Any]] = {
    **{name: {} for name, config in CONFIGS.items() if ARCHITECTURES[config.model_type].attention.heads},
    "llama-ungrouped": {"num_key_value_heads": 4},
    "llama-biased": {"attention_bias": True},
}
"""Changes of the tiny config of that architecture, by the name of the case."""


@dataclass(frozen=True)
class Written:
    """A package, the models in memory that it was made of, and what a fresh process says of it."""

    directory: Path
    parameters: int
    original: StreamedModel
    edited: EditedModel
    verified: Verified


def save_model(name: str, directory: Path) -> StreamedModel:
    """Three blocks of random weights, biases among them."""
    known = copy.deepcopy(CONFIGS[name if name in CONFIGS else name.partition("-")[0]])
    settings = known.to_dict() | {"num_hidden_layers": 3, "layer_types": None} | MODELS[name]
    model_of(type(known).from_dict(settings)).save_pretrained(directory)
    return StreamedModel.open(directory)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """Every model with one key/value head and fewer hidden units; all opened in one fresh process."""
    root = tmp_path_factory.mktemp("heads")
    ids = token_ids(sequences=8, length=16)
    originals, models, counts, probes = {}, {}, {}, []
    for name in MODELS:
        originals[name] = save_model(name, root / name)
        parts = list(taken(STEP, originals[name], EditedModel(originals[name]), ids))
        models[name] = EditedModel(originals[name], parts)
        package = write_package(root / name, parts, root / f"{name}-narrowed")
        counts[name] = package.parameters
        probes.append(Probe(package.directory, token_ids(), logits_of(models[name])))
    verified = verify_all(probes, timeout=120)
    return {
        name: Written(probe.directory, counts[name], originals[name], models[name], found)
        for name, probe, found in zip(MODELS, probes, verified, strict=True)
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_stranger_computes_the_logits_of_the_model_in_memory(name: str, packages: dict[str, Written]) -> None:
    assert packages[name].verified.difference < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_checkpoint_of_the_original_architecture_that_says_its_heads(
    name: str, packages: dict[str, Written]
) -> None:
    before, after = (
        json.loads((directory / "config.json").read_text())
        for directory in (packages[name].directory.with_name(name), packages[name].directory)
    )
    shared_by = before["num_attention_heads"] // before["num_key_value_heads"]
    assert (after["num_attention_heads"], after["num_key_value_heads"], after["head_dim"]) == (shared_by, 1, 8)
    assert after["model_type"] == before["model_type"]
    assert "auto_map" not in after


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_model_in_one_piece_computes_the_logits(name: str, packages: dict[str, Written]) -> None:
    edited = packages[name].edited
    torch.testing.assert_close(edited.whole()(token_ids()).logits, logits_of(edited), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_generation_with_a_cache_gives_what_it_gives_without(name: str, packages: dict[str, Written]) -> None:
    whole: Any = packages[name].edited.whole()
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    without = whole.generate(token_ids()[:1, :PROMPT], use_cache=False, **length)
    assert packages[name].verified.generated == tuple(without[0, PROMPT:].tolist())


@pytest.mark.parametrize("name", MODELS)
def test_the_package_opens_as_what_was_narrowed_in_memory(name: str, packages: dict[str, Written]) -> None:
    assert StreamedModel.open(packages[name].directory).inventory == packages[name].edited.inventory


@pytest.mark.parametrize("name", MODELS)
def test_what_it_will_store_is_known_beforehand(name: str, packages: dict[str, Written]) -> None:
    planned = narrowed(regrouped(packages[name].original.inventory, 1), UNITS)
    assert planned.total_parameters == packages[name].parameters


def test_blocks_that_have_not_equally_many_heads_are_no_checkpoint(
    packages: dict[str, Written], tmp_path: Path
) -> None:
    original = packages["llama"].original
    ids = token_ids(sequences=4, length=16)
    first = next(taken(Narrow(key_value_heads=1), original, EditedModel(original), ids))
    with pytest.raises(ValueError, match="equally many attention heads"):
        EditedModel(original, [first]).whole()
    with pytest.raises(ValueError, match="equally many attention heads"):
        write_package(packages["llama"].directory.with_name("llama"), [first], tmp_path / "package")
