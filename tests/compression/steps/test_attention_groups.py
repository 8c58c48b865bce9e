"""Narrowing the attention of tiny models of several architectures, opened from real files."""

from pathlib import Path

import pytest
from torch import Tensor

from modelpress.spec.dimensions import intermediate_size
from modelpress.spec.heads import HeadsDoNotFit, heads_of
from modelpress.spec.steps import Narrow
from tests.support.compression import same
from tests.support.models import distance, open_tiny, token_ids
from tests.support.planning import taken
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps import narrow as width

SOME = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text")


def without_a_group(model: StreamedModel) -> EditedModel:
    """The model that does not use group 0 in block 0, nor group 1 in block 1."""
    width = heads_of(model.inventory).group_width
    edited = EditedModel(model)
    for block in range(model.inventory.blocks):
        name = f"model.layers.{block}.self_attn.o_proj.weight"
        tensor = model.read([name])[name]
        tensor[:, block * width : (block + 1) * width] = 0
        edited.apply(CompressedPart("part", {}, {name: tensor}, {}))
    return edited


def first_groups(model: StreamedModel, count: int) -> list[CompressedPart]:
    """Narrowing without a choice or a fit, for comparison."""
    heads = heads_of(model.inventory)
    parts = []
    for block in range(model.inventory.blocks):
        prefix = f"model.layers.{block}.self_attn."
        with model.block(block) as whole:
            tensors: dict[str, Tensor] = {}
            for name, tensor in whole.get_submodule("self_attn").state_dict().items():
                module, leaf = name.split(".")
                rows = count * (heads.group_width if module == "q_proj" else heads.size)
                if module == "o_proj" and leaf == "weight":
                    tensors[prefix + name] = tensor[:, : count * heads.group_width].clone()
                elif module in ("q_proj", "k_proj", "v_proj"):
                    tensors[prefix + name] = tensor[:rows].clone()
        parts.append(CompressedPart(prefix, {}, tensors, {}))
    return parts


def narrowed(
    original: StreamedModel, model: EditedModel, size: int | None = None, key_value_heads: int | None = 1
) -> list[CompressedPart]:
    """The parts of the model with fewer key/value heads and, where a size is given, hidden units."""
    return list(
        taken(Narrow(intermediate_size=size, key_value_heads=key_value_heads), original, model, token_ids(8, 32))
    )


@pytest.mark.parametrize("name", SOME)
def test_groups_that_write_nothing_go_and_cost_nothing(name: str, tmp_path: Path) -> None:
    model = without_a_group(open_tiny(name, tmp_path))
    parts = narrowed(model, model)
    found = EditedModel(model, parts)
    assert heads_of(found.inventory) == heads_of(model.inventory).with_key_values(1)
    assert distance(model, found) < 1e-4


@pytest.mark.parametrize("name", SOME)
def test_narrowing_beats_keeping_the_first_groups(name: str, tmp_path: Path) -> None:
    model = open_tiny(name, tmp_path)
    found = EditedModel(model, narrowed(model, EditedModel(model)))
    assert distance(model, found) < 0.9 * distance(model, EditedModel(model, first_groups(model, 1)))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_making_up_for_what_was_lost_before_brings_the_stream_nearer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_tiny(name, tmp_path)
    half = EditedModel(model, narrowed(model, EditedModel(model)))
    monkeypatch.setattr(width, "COMPENSATION", 0.0)
    without = EditedModel(model, narrowed(model, EditedModel(model)))
    assert distance(model, half) < distance(model, without)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_hidden_units_go_in_the_same_parts(name: str, tmp_path: Path) -> None:
    model = open_tiny(name, tmp_path)
    parts = narrowed(model, EditedModel(model), 24)
    found = EditedModel(model, parts)
    assert [part.name for part in parts] == ["model.layers.0", "model.layers.1"]
    assert (intermediate_size(found.inventory), heads_of(found.inventory).key_values) == (24, 1)
    assert list(parts[1].errors) == ["model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"]
    assert all(0 < error < 1 for part in parts for error in part.errors.values())


def test_mlps_are_fitted_to_what_the_narrowed_attention_leaves(tmp_path: Path) -> None:
    model = open_tiny("llama", tmp_path)
    together = narrowed(model, EditedModel(model), 24)
    alone = narrowed(model, EditedModel(model), 24, key_value_heads=None)
    apart = EditedModel(model, narrowed(model, EditedModel(model)))
    for part in alone:
        apart.apply(part)
    assert distance(model, EditedModel(model, together)) < distance(model, apart)


def test_going_on_after_a_part_gives_the_same_bytes(tmp_path: Path) -> None:
    model = open_tiny("qwen2", tmp_path)
    whole = narrowed(model, EditedModel(model), 24)
    step = Narrow(intermediate_size=24, key_value_heads=1)
    (rest,) = taken(step, model, EditedModel(model), token_ids(8, 32), whole[:1])
    assert same(rest, whole[1])


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "phi", "phi3"])
def test_attention_stays_where_the_config_cannot_say_that_it_is_narrower(name: str, tmp_path: Path) -> None:
    model = open_tiny(name, tmp_path)
    with pytest.raises(HeadsDoNotFit, match="cannot state"):
        narrowed(model, EditedModel(model))
