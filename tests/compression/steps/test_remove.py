"""Models that are smaller by whole blocks and nothing else."""

import dataclasses

import pytest
import torch

from tests.support.models import token_ids
from tests.support.text_models import write_tiny_model
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.steps.influence import removals
from workers.compression.steps.remove import blocks_to_drop, drop


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StreamedModel:
    return StreamedModel.open(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", blocks=4))


@pytest.mark.parametrize(("blocks_left", "count"), [(4.0, 1), (3.4, 1), (2.6, 1), (2.4, 2), (0.2, 3)])
def test_the_count_comes_nearest_to_the_size(model: StreamedModel, blocks_left: float, count: int) -> None:
    inventory = model.inventory
    block = inventory.block_parameters[0]
    wanted = inventory.total_parameters - round((4 - blocks_left) * block)
    assert blocks_to_drop(inventory, wanted) == count


def test_a_single_block_cannot_be_spared(model: StreamedModel) -> None:
    with pytest.raises(ValueError, match="single block"):
        blocks_to_drop(dataclasses.replace(model.inventory, blocks=1), 10)


def test_the_least_influential_blocks_go_and_the_rest_is_the_originals(model: StreamedModel) -> None:
    ids = token_ids(4, 16)
    parts = list(drop(model, ids, 2))
    assert [part.removed for part in parts] == [(block,) for block, _ in removals(EditedModel(model), ids, 2)]
    assert not any(part.tensors or part.structures for part in parts)
    kept = EditedModel(model, parts).kept
    hidden = model.hidden(ids)
    for index in kept:
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    with torch.no_grad():
        expected = EditedModel(model, parts).whole()(ids).logits
    torch.testing.assert_close(model.logits(hidden), expected, rtol=1e-4, atol=1e-5)
