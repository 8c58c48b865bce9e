"""Parts laid over a checkpoint: what is there, under which name, in which shape, and who holds it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.models import save_tiny_model, tiny_model, token_ids
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Original, Overlay
from workers.compression.parts import CompressedPart

TABLE = "model.embed_tokens"
UP = "model.layers.1.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"
LOW_RANK = {"kind": "low_rank", "rank": 4}


def part(
    tensors: Mapping[str, Tensor] | None = None,
    structures: Mapping[str, Mapping[str, Any]] | None = None,
    removed: tuple[int, ...] = (),
) -> CompressedPart:
    return CompressedPart("part", structures or {}, tensors or {}, {}, removed)


def factored(site: str, rows: int, columns: int, rank: int = 4) -> CompressedPart:
    tensors = {f"{site}.first": torch.ones(rank, columns), f"{site}.second": torch.ones(rows, rank)}
    return part(tensors, {site: {"kind": "low_rank", "rank": rank}})


def factored_table(head: Mapping[str, Any] | None = None) -> CompressedPart:
    tensors = {f"{TABLE}.codes": torch.ones(96, 4), f"{TABLE}.mixing": torch.ones(4, 32)}
    return part(tensors, {TABLE: LOW_RANK} | ({} if head is None else {"lm_head": head}))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    for name in ("llama", "llama-tied", "gpt2"):
        save_tiny_model(name, root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def llama(directories: dict[str, Path]) -> Original:
    return Original.read(directories["llama"])


@pytest.fixture
def tied(directories: dict[str, Path]) -> Original:
    return Original.read(directories["llama-tied"])


def test_without_parts_it_is_the_original(llama: Original) -> None:
    overlay = Overlay(llama)
    assert overlay.inventory == llama.inventory
    assert (overlay.config(), overlay.structures) == (llama.config, {})
    stored = load_file(llama.directory / "model.safetensors")
    written = dict(overlay.tensors())
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in stored.items())


def test_of_two_parts_the_later_holds_the_tensor(llama: Original) -> None:
    overlay = Overlay(
        llama, [part({f"{DOWN}.weight": torch.zeros(32, 48)}), part({f"{DOWN}.weight": torch.ones(32, 48)})]
    )
    assert torch.equal(overlay.tensor(f"{DOWN}.weight"), torch.ones(32, 48))
    assert [name for name in overlay.tensor_names() if name == f"{DOWN}.weight"] == [f"{DOWN}.weight"]
    assert overlay.holder(f"{UP}.weight") is None


def test_factors_take_the_place_of_the_weight_and_nothing_else(llama: Original) -> None:
    before, overlay = Overlay(llama), Overlay(llama, [factored(UP, 48, 32)])
    assert overlay.shapes.keys() ^ before.shapes.keys() == {f"{UP}.{name}" for name in ("weight", "first", "second")}
    assert overlay.is_factored
    assert overlay.parameters_of(UP) == 4 * (48 + 32)
    assert overlay.inventory.total_parameters == llama.inventory.total_parameters - 48 * 32 + 4 * (48 + 32)


def test_an_earlier_weight_of_a_factored_matrix_is_forgotten(llama: Original) -> None:
    overlay = Overlay(llama, [part({f"{UP}.weight": torch.ones(40, 32)}), factored(UP, 40, 32)])
    assert f"{UP}.weight" not in set(overlay.tensor_names())
    (site,) = (site for site in overlay.inventory.sites if site.name == UP)
    assert (site.out_features, site.in_features) == (40, 32)


@pytest.mark.parametrize("order", [1, -1])
def test_what_lies_in_a_removed_block_is_gone_whichever_part_came_first(order: int, llama: Original) -> None:
    overlay = Overlay(llama, [factored(UP, 48, 32), part(removed=(1,))][::order])
    assert (overlay.kept, overlay.structures) == ((0,), {})
    assert not any(".layers.1." in name for name in overlay.shapes)
    assert overlay.parameters_of(UP) == 0
    assert overlay.inventory.block_parameters[1] == 0
    assert {site.block for site in overlay.inventory.sites} == {0}


def test_blocks_that_remain_are_written_without_a_gap(llama: Original) -> None:
    overlay = Overlay(llama, [part(removed=(0,)), factored(UP, 48, 32)])
    assert overlay.written_name(UP) == "model.layers.0.mlp.up_proj"
    written = dict(overlay.tensors())
    assert {"model.layers.0.mlp.up_proj.first", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"} <= set(written)
    assert not any(".layers.1." in name for name in written)
    assert overlay.config()["num_hidden_layers"] == 1


def test_sizes_are_read_the_way_the_layout_stores_them(directories: dict[str, Path]) -> None:
    original = Original.read(directories["gpt2"])
    site = next(site for site in original.inventory.sites if site.out_features != site.in_features)
    overlay = Overlay(original, [part({f"{site.name}.weight": torch.ones(site.in_features - 8, site.out_features)})])
    (present,) = (present for present in overlay.inventory.sites if present.name == site.name)
    assert (present.out_features, present.in_features) == (site.out_features, site.in_features - 8)


def test_a_tied_head_reads_the_factored_table(tied: Original) -> None:
    overlay = Overlay(tied, [factored_table()])
    assert overlay.structures["lm_head"] == {"kind": "tied", "to": TABLE}
    assert overlay.is_tied
    assert overlay.inventory.head is None
    assert overlay.parameters_of("lm_head") == 0


def test_a_head_of_its_own_does_not_follow_the_table(llama: Original) -> None:
    overlay = Overlay(llama, [factored_table()])
    assert overlay.structures.keys() == {TABLE}
    assert not overlay.is_tied
    assert overlay.parameters_of("lm_head") == 96 * 32


def test_a_dense_structure_leaves_a_tied_head_the_table_of_the_original(tied: Original) -> None:
    overlay = Overlay(tied, [factored_table({"kind": "dense"})])
    table = load_file(tied.directory / "model.safetensors")[f"{TABLE}.weight"]
    assert not overlay.is_tied
    assert overlay.inventory.head is not None
    assert overlay.inventory.head.out_features == 96
    assert torch.equal(overlay.tensor("lm_head.weight"), table)
    assert overlay.inventory.total_parameters == tied.inventory.total_parameters + 4 * (96 + 32)


def test_a_trained_head_takes_the_place_of_the_table_that_it_kept(tied: Original) -> None:
    overlay = Overlay(tied, [factored_table({"kind": "dense"}), part({"lm_head.weight": torch.ones(96, 32)})])
    assert torch.equal(dict(overlay.tensors())["lm_head.weight"], torch.ones(96, 32))


def test_tensors_have_the_dtype_of_the_weight_that_they_stand_for(tmp_path: Path) -> None:
    tiny_model("llama-tied").bfloat16().save_pretrained(tmp_path)
    indices = part({f"{DOWN}.order": torch.arange(32)}, {DOWN: {"kind": "pivoted", "rank": 4}})
    overlay = Overlay.open(tmp_path, [factored_table({"kind": "dense"}), factored(UP, 48, 32), indices])
    kinds = {name: tensor.dtype for name, tensor in overlay.tensors()}
    assert kinds.pop(f"{DOWN}.order") == torch.int64
    assert set(kinds.values()) == {torch.bfloat16}


def test_a_copy_takes_parts_without_a_trace_in_the_other(llama: Original) -> None:
    first = Overlay(llama, [part(removed=(0,))])
    second = first.copy()
    second.add(factored(UP, 48, 32))
    assert (first.kept, second.kept) == ((1,), (1,))
    assert (first.structures, second.structures.keys()) == ({}, {UP})
    assert f"{UP}.weight" in first.shapes
    assert first.inventory.total_parameters != second.inventory.total_parameters


def test_an_edited_model_over_an_edited_model_has_the_parts_of_both(directories: dict[str, Path]) -> None:
    model = StreamedModel.open(directories["llama"])
    first, second = part({f"{DOWN}.weight": torch.ones(32, 48)}), factored(UP, 48, 32)
    twice = EditedModel(EditedModel(model, [first]), [second])
    with torch.no_grad():
        found, expected = (each.whole()(token_ids()).logits for each in (twice, EditedModel(model, [first, second])))
    assert torch.equal(found, expected)
