"""Speed and samples of whole models."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.support.models import save_tiny_model
from tests.support.text_models import write_tiny_model
from workers.compression import chat_template
from workers.compression.evaluation.speed import greedy_sample, speed
from workers.compression.models.streamed import StreamedModel


def test_speed_says_what_was_measured(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    found = speed(StreamedModel.open(tmp_path).whole(), prompt=8, new_tokens=3, repeats=2)
    assert found.prefill > 0
    assert found.decode > 0
    assert (found.prompt, found.new_tokens, found.dtype) == (8, 3, "float32")
    assert found.threads == torch.get_num_threads()


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


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


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('a system prompt is missing') }}", "{{ 1 / 0 }}", "{% for", ENDLESS, "{{ 'x' * 2000000 }}"],
)
def test_a_model_whose_chat_template_fails_gives_no_sample(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "TEMPLATE_SECONDS", 0.2)
    write_tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = template
    assert greedy_sample(StreamedModel.open(tmp_path).whole(), tokenizer, "the quick", new_tokens=5) is None
