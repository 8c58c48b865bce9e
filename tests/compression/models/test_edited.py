"""The model with its finished parts in place: what is read when, what passes, what can be built on it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelpress.spec.methods.svd import SVD
from tests.support.models import logits_of, open_tiny, token_ids
from tests.support.packages import write_package
from tests.support.planning import factored, uniform_plan
from workers.compression.math.sensitivity import measure
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart

DOWN = "model.layers.1.mlp.down_proj.weight"


class StoredTensors(Mapping[str, Tensor]):
    """Tensors that are read from their file whenever they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        return load_file(self.path)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(load_file(self.path))

    def __len__(self) -> int:
        return len(load_file(self.path))


def part(tensors: Mapping[str, Tensor] | None = None, removed: tuple[int, ...] = ()) -> CompressedPart:
    return CompressedPart("part", tensors=tensors or {}, removed=removed)


def narrowed_mlps(units: int) -> dict[str, Tensor]:
    shapes = {"gate_proj": (units, 32), "up_proj": (units, 32), "down_proj": (32, units)}
    return {
        f"model.layers.{block}.mlp.{name}.weight": torch.randn(shape, generator=torch.Generator().manual_seed(block))
        for block in range(2)
        for name, shape in shapes.items()
    }


def test_of_two_parts_the_later_one_counts(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    first, second = torch.zeros(32, 48), torch.ones(32, 48)
    edited = EditedModel(model, [part({DOWN: first}), part({DOWN: second})])
    assert torch.equal(edited.read([DOWN])[DOWN], second)
    with edited.block(1) as block:
        assert torch.equal(block.mlp.down_proj.weight, second)


def test_the_original_stays_as_it_is(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    before, inventory = logits_of(model), model.inventory
    edited = EditedModel(model, [part(narrowed_mlps(20), removed=(0,)), part({"model.norm.weight": torch.zeros(32)})])
    assert not logits_of(edited).any()
    assert torch.equal(logits_of(model), before)
    assert model.inventory == inventory


def test_a_removed_block_passes_its_input_through(tmp_path: Path) -> None:
    edited = EditedModel(open_tiny("llama", tmp_path), [part(removed=(0,))])
    hidden = torch.randn(2, 12, 32)
    with edited.block(0) as block:
        assert torch.equal(edited.run(block, 0, hidden), hidden)
    assert edited.kept == (1,)
    assert {site.block for site in edited.inventory.sites} == {1}


def test_an_edit_of_a_removed_block_is_passed_over(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path / "source")
    removal, edit = part(removed=(1,)), part({DOWN: torch.ones(32, 48)})
    expected = logits_of(EditedModel(model, [removal]))
    assert torch.equal(logits_of(EditedModel(model, [removal, edit])), expected)
    package = write_package(tmp_path / "source", [edit, removal], tmp_path / "package")
    assert torch.equal(logits_of(StreamedModel.open(package.directory)), expected)


def test_tensors_are_read_anew_for_each_block(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    save_file(narrowed_mlps(20), tmp_path / "part.safetensors")
    stored = StoredTensors(tmp_path / "part.safetensors")
    edited = EditedModel(model, [part(stored)])
    stored.read.clear()
    with edited.block(1):
        assert stored.read
        assert all(name.startswith("model.layers.1.") for name in stored.read)


def test_an_edited_embedding_is_that_of_a_tied_head_too(tmp_path: Path) -> None:
    model = open_tiny("llama-tied", tmp_path)
    table = torch.randn(96, 32, generator=torch.Generator().manual_seed(5))
    edited = EditedModel(model, [part({"model.embed_tokens.weight": table})])
    assert torch.equal(edited.hidden(token_ids()), table[token_ids()])
    with edited.head(), torch.no_grad():
        assert torch.equal(edited.head_module.weight, table)


def test_a_narrowed_model_can_be_measured_and_factored(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path / "source")
    parts = [part(narrowed_mlps(40))]
    edited = EditedModel(model, parts)
    measured = {name: found for each in measure(edited, token_ids(4, 16)) for name, found in each.items()}
    plan = uniform_plan(edited.inventory, 1.1, SVD.family)
    parts += factored(edited, plan, token_ids(4, 16), measured)
    package = write_package(tmp_path / "source", parts, tmp_path / "package")
    assert package.parameters == plan.parameters_after
    opened = StreamedModel.open(package.directory)
    torch.testing.assert_close(logits_of(opened), logits_of(EditedModel(model, parts)), rtol=1e-5, atol=1e-5)


def test_blocks_that_are_not_equally_wide_are_no_checkpoint(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path / "source")
    one_block = part({name: tensor for name, tensor in narrowed_mlps(20).items() if ".1." in name})
    with pytest.raises(ValueError, match="not equally wide"):
        EditedModel(model, [one_block]).whole()
    with pytest.raises(ValueError, match="not equally wide"):
        write_package(tmp_path / "source", [one_block], tmp_path / "package")


def test_layer_types_that_the_file_leaves_out_are_stated_for_the_blocks_that_remain(tmp_path: Path) -> None:
    model = open_tiny("gemma2", tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("layer_types") == ["sliding_attention", "full_attention"]
    path.write_text(json.dumps(config))
    removal = part(removed=(0,))
    package = write_package(tmp_path / "source", [removal], tmp_path / "package")
    assert json.loads((package.directory / "config.json").read_text())["layer_types"] == ["full_attention"]
    opened = StreamedModel.open(package.directory)
    assert torch.equal(logits_of(opened), logits_of(EditedModel(model, [removal])))
