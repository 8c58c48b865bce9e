"""A sweep of refits over a model that has lost blocks, on tiny models opened from real files."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from modelpress.spec.steps import Refit
from tests.support.planning import taken
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart

CONFIG = LlamaConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=80,
)
IDS = torch.randint(80, (60, 24), generator=torch.Generator().manual_seed(1))
OTHERS = torch.randint(80, (6, 24), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> StreamedModel:
    directory: Path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    return StreamedModel.open(directory)


def shortened(original: StreamedModel, *removed: int) -> EditedModel:
    return EditedModel(original, [CompressedPart("removed", removed=removed)])


def refitted(original: StreamedModel, edited: EditedModel) -> list[CompressedPart]:
    return list(taken(Refit(), original, edited, IDS))


@torch.no_grad()
def divergence(model: EditedModel, original: StreamedModel) -> float:
    """KL of the model from the original on text that no fit has seen, in nats per token."""
    expected = original.whole().eval()(OTHERS).logits.log_softmax(-1)
    return float((expected.exp() * (expected - model.whole().eval()(OTHERS).logits.log_softmax(-1))).sum(-1).mean())


def test_the_realigned_model_is_nearer_to_the_original(original: StreamedModel) -> None:
    edited = shortened(original, 2, 4)
    before = divergence(edited, original)
    refitted(original, edited)
    assert divergence(edited, original) < before


def test_every_block_that_remains_gets_one_part_which_is_empty_up_to_the_first_gap(original: StreamedModel) -> None:
    parts = refitted(original, shortened(original, 2, 3, 5))
    assert [part.name for part in parts] == [f"model.layers.{block}" for block in (0, 1, 4, 6)]
    last = "mlp.down_proj.weight"
    both = ["self_attn.o_proj.weight", last]
    expected = {0: [], 1: [last], 4: both, 6: both}
    assert [list(part.tensors) for part in parts] == [
        [f"model.layers.{block}.{name}" for name in names] for block, names in expected.items()
    ]
    whole = original.whole().state_dict()
    assert not any(torch.equal(tensor, whole[name]) for part in parts for name, tensor in part.tensors.items())


def test_without_the_first_block_all_others_are_refitted(original: StreamedModel) -> None:
    assert all(part.tensors for part in refitted(original, shortened(original, 0)))


def test_a_whole_model_stays_as_it_is(original: StreamedModel) -> None:
    assert not any(part.tensors for part in refitted(original, EditedModel(original)))


def test_resumed_it_gives_the_same_parts(original: StreamedModel) -> None:
    whole = refitted(original, shortened(original, 2, 4))
    edited = shortened(original, 2, 4)
    for part in whole[:3]:
        edited.apply(part)
    rest = list(taken(Refit(), original, edited, IDS, whole[:3]))
    assert [part.name for part in rest] == [part.name for part in whole[3:]]
    for again, expected in zip(rest, whole[3:], strict=True):
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in expected.tensors.items())
