"""Writing one token after another gives what reading all of them at once gives."""

import weakref

import pytest
import torch
from transformers import DynamicCache

from tests.support.models import MODELS, VOCABULARY, sampled, tiny_model
from workers.compression.models import decoding


@pytest.mark.parametrize("name", sampled(MODELS))
def test_the_logits_are_those_of_the_whole_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "ROOM", 7)  # more room has to be made on the way
    model = tiny_model(name)
    ids = torch.randint(VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), decoding.decoding(model) as decode:
        logits = torch.stack([decode(tokens) for tokens in ids.T], dim=1)
    torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_second_context_begins_anew() -> None:
    model, tokens = tiny_model("llama"), torch.tensor([5, 6])
    with torch.no_grad():
        with decoding.decoding(model) as decode:
            first = decode(tokens)
            assert not torch.equal(decode(tokens), first)
        with decoding.decoding(model) as decode:
            assert torch.equal(decode(tokens), first)


def test_keys_and_values_go_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    caches: list[DynamicCache] = []
    make = decoding.roomy_cache
    monkeypatch.setattr(decoding, "roomy_cache", lambda whole: caches.append(make(whole)) or caches[-1])
    with torch.no_grad(), decoding.decoding(model) as decode:
        decode(torch.tensor([5, 6]))
        layer = weakref.ref(caches[-1].layers[0])
    assert layer() is None


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    model.train()
    attention = model.config._attn_implementation
    with pytest.raises(RuntimeError), decoding.decoding(model):
        assert not model.training
        raise RuntimeError
    assert model.training
    assert model.config._attn_implementation == attention
