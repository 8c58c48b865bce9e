"""Every architecture whose attention can be narrowed: run in memory, written, and opened by a stranger."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from modelpress.spec.architectures import architecture_named
from modelpress.spec.dimensions import narrowed
from modelpress.spec.heads import regrouped
from modelpress.spec.steps import Narrow
from tests.support.models import MODELS, logits_of, open_tiny, sampled, tiny_config, token_ids
from tests.support.packages import Outcomes, verified, write_package
from tests.support.planning import taken
from workers.compression.formats.verification import Probe, Verified
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel

PROMPT, NEW_TOKENS = 4, 4
UNITS = 40
STEP = Narrow(intermediate_size=UNITS, key_value_heads=1)
VARIANTS: dict[str, dict[str, Any]] = {
    "llama-ungrouped": {"num_key_value_heads": 4},
    "llama-biased": {"attention_bias": True},
}
"""Further cases: changes of the tiny config of the architecture that the name begins with."""
CASES = [*(name for name in MODELS if architecture_named(tiny_config(name).model_type).attention.heads), *VARIANTS]


@dataclass(frozen=True)
class Narrowed:
    """A package with one key/value head and fewer hidden units, and the models in memory that it was made of."""

    source: Path
    directory: Path
    parameters: int
    original: StreamedModel
    edited: EditedModel


@pytest.fixture(scope="module")
def packages(names: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Outcomes[Narrowed]:
    root = tmp_path_factory.mktemp("heads")

    def written(name: str) -> Narrowed:
        known = name if name in MODELS else name.partition("-")[0]
        original = open_tiny(known, root / name, num_hidden_layers=3, **VARIANTS.get(name, {}))
        ids = token_ids(sequences=8, length=16)
        parts = list(taken(STEP, original, EditedModel(original), ids))
        package = write_package(root / name, parts, root / f"{name}-narrowed")
        return Narrowed(root / name, package.directory, package.parameters, original, EditedModel(original, parts))

    return Outcomes(names, written)


@pytest.fixture(scope="module")
def opened(names: tuple[str, ...], packages: Outcomes[Narrowed]) -> Outcomes[Verified]:
    def probe(name: str) -> Probe:
        return Probe(packages[name].directory, token_ids(), logits_of(packages[name].edited))

    return verified(Outcomes(names, probe))


@pytest.mark.parametrize("name", sampled(CASES, also=VARIANTS))
def test_a_stranger_computes_the_logits_of_the_model_in_memory(name: str, opened: Outcomes[Verified]) -> None:
    assert opened[name].difference < 1e-6


@pytest.mark.parametrize("name", sampled(CASES, also=VARIANTS))
def test_it_is_a_checkpoint_of_the_original_architecture_that_says_its_heads(
    name: str, packages: Outcomes[Narrowed]
) -> None:
    before, after = (
        json.loads((directory / "config.json").read_text())
        for directory in (packages[name].source, packages[name].directory)
    )
    shared_by = before["num_attention_heads"] // before["num_key_value_heads"]
    assert (after["num_attention_heads"], after["num_key_value_heads"], after["head_dim"]) == (shared_by, 1, 8)
    assert after["model_type"] == before["model_type"]
    assert "auto_map" not in after


@pytest.mark.parametrize("name", sampled(CASES, also=VARIANTS))
def test_the_model_in_one_piece_computes_the_logits(name: str, packages: Outcomes[Narrowed]) -> None:
    edited = packages[name].edited
    torch.testing.assert_close(logits_of(edited.whole()), logits_of(edited), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sampled(CASES, also=VARIANTS))
def test_generation_with_a_cache_gives_what_it_gives_without(
    name: str, packages: Outcomes[Narrowed], opened: Outcomes[Verified]
) -> None:
    whole: Any = packages[name].edited.whole()
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    without = whole.generate(token_ids()[:1, :PROMPT], use_cache=False, **length)
    assert opened[name].generated == tuple(without[0, PROMPT:].tolist())


@pytest.mark.parametrize("name", sampled(CASES, also=VARIANTS))
def test_the_package_opens_as_what_was_narrowed_in_memory(name: str, packages: Outcomes[Narrowed]) -> None:
    assert StreamedModel.open(packages[name].directory).inventory == packages[name].edited.inventory


@pytest.mark.parametrize("name", sampled(CASES, also=VARIANTS))
def test_what_it_will_store_is_known_beforehand(name: str, packages: Outcomes[Narrowed]) -> None:
    planned = narrowed(regrouped(packages[name].original.inventory, 1), UNITS)
    assert planned.total_parameters == packages[name].parameters


@pytest.mark.parametrize("name", ["llama"])
def test_blocks_that_have_not_equally_many_heads_are_no_checkpoint(
    name: str, packages: Outcomes[Narrowed], tmp_path: Path
) -> None:
    original = packages[name].original
    ids = token_ids(sequences=4, length=16)
    first = next(taken(Narrow(key_value_heads=1), original, EditedModel(original), ids))
    with pytest.raises(ValueError, match="equally many attention heads"):
        EditedModel(original, [first]).whole()
    with pytest.raises(ValueError, match="equally many attention heads"):
        write_package(packages[name].source, [first], tmp_path / "package")
