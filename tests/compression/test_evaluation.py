"""Perplexity, size, speed and samples, against what the whole model says."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer

from tests.contracts.tiny_models import save_tiny_model, token_ids
from tests.tiny import write_tiny_model
from workers.compression import evaluation
from workers.compression.evaluation import greedy_sample, perplexity, speed, stored_size
from workers.compression.models.streamed import StreamedModel


@pytest.mark.parametrize("limit", [1, 2**20])
def test_perplexity_is_that_of_the_whole_model(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "HIDDEN_BYTES", limit)
    monkeypatch.setattr(evaluation, "LOGIT_BYTES", limit)
    whole = save_tiny_model("qwen2", tmp_path)
    windows = token_ids(5, 9)
    with torch.no_grad():
        logits = whole(windows).logits[:, :-1]
    expected = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).exp().item()
    found = perplexity(StreamedModel.open(tmp_path), windows, batch=2)
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.tokens == 5 * 8


def test_perplexity_of_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    with pytest.raises(ValueError, match="at least two tokens"):
        perplexity(StreamedModel.open(tmp_path), token_ids(3, 1))


def test_size_counts_a_tied_table_once(tmp_path: Path) -> None:
    model = save_tiny_model("llama-tied", tmp_path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (stored_size(tmp_path).parameters, stored_size(tmp_path).bytes) == (parameters, 4 * parameters)


def test_speed_says_what_was_measured(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    found = speed(StreamedModel.open(tmp_path).whole(), prompt=8, new_tokens=3, repeats=2)
    assert found.prefill > 0
    assert found.decode > 0
    assert (found.prompt, found.new_tokens, found.dtype) == (8, 3, "float32")
    assert found.threads == torch.get_num_threads()


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }}{% endfor %}"])
def test_a_sample_is_the_most_likely_continuation(template: str | None, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = template
    model = StreamedModel.open(tmp_path).whole()
    ids = tokenizer("the quick", return_tensors="pt").input_ids
    length = ids.shape[1]
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    expected = tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()
    assert greedy_sample(model, tokenizer, "the quick", new_tokens=5) == expected
