"""Which experts leave a mixture, and what is left of the model."""

from pathlib import Path

import pytest
import torch

from modelpress.spec.steps import KeepExperts
from tests.support.models import BLOCKS, distance, open_tiny, token_ids
from tests.support.planning import taken
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.experts import Contribution


def kept(model: StreamedModel | EditedModel, count: int = 3, finished: int = 0) -> list[CompressedPart]:
    """The parts of a step that leaves `count` experts, the first `finished` of which are there already."""
    original = model
    edited = EditedModel(model) if not isinstance(model, EditedModel) else model
    parts = list(taken(KeepExperts(count=count), original, edited, token_ids(4, 16)))
    return (
        parts
        if not finished
        else [
            *parts[:finished],
            *taken(KeepExperts(count=count), original, edited, token_ids(4, 16), parts[:finished]),
        ]
    )


def edited_with(model: StreamedModel, tensors: dict[str, torch.Tensor]) -> EditedModel:
    return EditedModel(model, [CompressedPart("changed", tensors=tensors)])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_an_expert_that_writes_nothing_goes_first(name: str, tmp_path: Path) -> None:
    model = open_tiny(name, tmp_path)
    down = {"mixtral": "block_sparse_moe.experts.2.w2.weight"}.get(name, "mlp.experts.2.down_proj.weight")
    last = BLOCKS - 1
    silent = {f"model.layers.{last}.{down}": torch.zeros(model.overlay.shapes[f"model.layers.{last}.{down}"])}
    parts = kept(edited_with(model, silent))
    assert parts[last].experts == {last: (0, 1, 3)}


def test_an_expert_that_no_token_reaches_goes_and_is_named(tmp_path: Path) -> None:
    model = open_tiny("gpt_oss", tmp_path)
    name = "model.layers.0.mlp.router.bias"
    bias = torch.tensor([0.0, -1e4, 0.0, 0.0])
    (first, second) = kept(edited_with(model, {name: bias}))
    assert first.experts == {0: (0, 2, 3)}
    assert first.unreached == (1,)
    assert second.unreached == ()


def test_the_removal_of_an_expert_that_does_nothing_changes_nothing(tmp_path: Path) -> None:
    model = open_tiny("gpt_oss", tmp_path)
    names = [f"model.layers.{block}.mlp.router.bias" for block in range(BLOCKS)]
    model = StreamedModel.open(written_with(model, dict.fromkeys(names, torch.tensor([0.0, -1e4, 0.0, 0.0])), tmp_path))
    assert distance(model, EditedModel(model, kept(model))) < 1e-6


def written_with(model: StreamedModel, tensors: dict[str, torch.Tensor], directory: Path) -> Path:
    """Write the model with other tensors in the place of its own."""
    edited_with(model, tensors).whole().save_pretrained(directory / "changed")
    return directory / "changed"


def test_a_block_without_a_mixture_has_an_empty_part(tmp_path: Path) -> None:
    dense, mixture = kept(open_tiny("deepseek_v3", tmp_path))
    assert not dense.experts
    assert len(mixture.experts[1]) == 3


def test_the_step_goes_on_after_the_parts_that_are_finished(tmp_path: Path) -> None:
    model = open_tiny("qwen3_moe", tmp_path)
    assert kept(model, finished=1) == kept(model)


def test_every_group_of_a_grouped_router_keeps_the_same_number() -> None:
    scores = torch.tensor([5.0, 6.0, 7.0, 8.0, 1.0, 4.0, 3.0, 2.0])
    found = Contribution(scores, torch.ones(8))
    assert found.kept(4, groups=2) == (2, 3, 5, 6)
    assert found.kept(4, groups=1) == (0, 1, 2, 3)
