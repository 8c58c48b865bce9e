"""Rounding tiny models part by part, opened from real files."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from modelpress.spec.inventory import Inventory
from modelpress.spec.plan import Plan
from modelpress.spec.steps import Quantise, Remove, Step
from tests.support.compression import same
from tests.support.models import distance, open_tiny, token_ids
from tests.support.planning import taken
from workers.compression.math.sensitivity import measure_all
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress

SOME = ("llama", "llama-tied", "gpt2", "opt", "opt-projected", "gemma2", "phi3", "gpt_neox")


def everything(inventory: Inventory, code: str) -> dict[str, str]:
    """Return the code for every matrix of the model whose rows it fits; the tiny ones are shorter than most blocks."""
    sites = (inventory.embedding, *inventory.sites, *([inventory.head] if inventory.head else []))
    return {site.name: code for site in sites if site.in_features % 16 == 0}


def quantised(
    model: StreamedModel, codes: dict[str, str], finished: Sequence[CompressedPart] = (), format: str = "safetensors"
) -> tuple[EditedModel, list[CompressedPart]]:
    """Return the model with its matrices rounded, and the parts behind the finished ones."""
    edited = EditedModel(model, finished)
    step = Quantise(format=format, codes=codes)
    return edited, list(taken(step, model, edited, token_ids(8, 32), finished))


@pytest.mark.parametrize("name", SOME)
def test_every_matrix_is_stored_in_its_code_and_the_model_stays_close(name: str, tmp_path: Path) -> None:
    model = open_tiny(name, tmp_path)
    codes = everything(model.inventory, "int8")
    edited, parts = quantised(model, codes)
    labels = Quantise(format="safetensors", codes=codes).labels(model.inventory, 0)
    assert len(parts) == len(labels)
    assert edited.overlay.codes == {f"{site}.weight": "int8" for site in codes}
    assert 0 < distance(model, edited) < 0.05
    assert all(0 < part.errors[site] < 0.05 for part in parts for site in part.errors)


def test_a_site_that_the_step_does_not_name_keeps_its_weights(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    site = "model.layers.1.mlp.up_proj"
    edited, parts = quantised(model, {site: "q8_0"})
    assert [part.name for part in parts if part.encodings] == ["model.layers.1"]
    assert edited.overlay.codes == {f"{site}.weight": "q8_0"}


def test_a_step_that_was_interrupted_ends_with_the_same_bytes(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    codes = everything(model.inventory, "int8")
    whole = quantised(model, codes)[1]
    for done in range(len(whole) + 1):
        rest = quantised(model, codes, whole[:done])[1]
        assert len(rest) == len(whole) - done
        assert all(same(found, expected) for found, expected in zip(rest, whole[done:], strict=True))


def test_only_remaining_blocks_are_rounded(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path, num_hidden_layers=3)
    steps: tuple[Step, ...] = (
        Remove(count=1, criterion="block_influence"),
        Quantise(format="gguf", codes={site.name: "q8_0" for site in model.inventory.sites if site.in_features == 32}),
    )
    plan = Plan(method="depth", steps=steps, parameters_before=2, parameters_after=1)
    parts: list[CompressedPart] = []
    for _ in compress(model, plan, token_ids(4, 32), parts):
        pass
    (removed,) = parts[0].removed
    assert len(parts) == len(plan.labels(model.inventory))
    assert f"model.layers.{removed}" not in [part.name for part in parts[1:]]


def test_units_are_float16_in_gguf_and_of_the_original_elsewhere(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path, dtype="bfloat16")
    site = "model.layers.0.self_attn.q_proj"
    for format, dtype in (("gguf", torch.float16), ("safetensors", torch.bfloat16)):
        edited, _ = quantised(model, {site: "q8_0"}, format=format)
        stored = edited.overlay.encoding(f"{site}.weight")
        assert stored is not None and stored.units.dtype == dtype


def test_a_tied_table_is_rounded_for_what_reads_it(tmp_path: Path) -> None:
    model = open_tiny("llama-tied", tmp_path)
    codes = {model.inventory.embedding.name: "q4_0"}
    step = Quantise(format="gguf", codes=codes)
    plan = Plan(method="width", steps=(step,), parameters_before=1, parameters_after=1)
    ids = token_ids(8, 32)
    found = {}
    for kind, measured in (("measured", measure_all(model, ids)), ("unmeasured", {})):
        edited = EditedModel(model)
        for _ in compress(edited, plan, ids, [], sensitivities=measured):
            pass
        found[kind] = distance(model, edited)
    assert found["measured"] < found["unmeasured"]


def test_unknown_codes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such codes: q9"):
        Quantise(format="gguf", codes={"lm_head": "q9"})
