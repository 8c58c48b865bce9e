"""A decoder and its head, computed apart."""

import pytest
import torch

from tests.support.models import MODELS, tiny_model, token_ids
from workers.compression.training import split


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_head_apart_gives_the_logits_of_the_whole_model(name: str) -> None:
    model, ids = tiny_model(name).eval(), token_ids()
    found = split.logits(model, split.states(model, ids).flatten(0, 1))
    torch.testing.assert_close(found, model(ids).logits.flatten(0, 1), rtol=1e-4, atol=1e-5)
