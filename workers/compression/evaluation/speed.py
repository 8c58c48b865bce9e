"""Speed of a whole model, and a sample of its text.

    speed(model.whole(), prompt=512, new_tokens=32)
    greedy_sample(model.whole(), tokenizer, "The capital of France is")

Both use the model's dtype and device and torch's current number of threads.
"""

import logging
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.compression import chat_template

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """Tokens per second at batch size 1: medians over several runs after a warm-up.

    `prefill` is measured reading `prompt` tokens at once, `decode` adding `new_tokens` one by one to the resulting
    cache.
    """

    prefill: float
    decode: float
    prompt: int
    new_tokens: int
    threads: int
    dtype: str


@torch.no_grad()
def speed(model: PreTrainedModel, *, prompt: int = 512, new_tokens: int = 32, repeats: int = 5) -> Speed:
    """Measure prefill and decoding on random tokens; return the medians of `repeats` runs after one warm-up run."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, prompt), generator=generator).to(model.device)
    runs = [_timed_run(model, ids, new_tokens) for _ in range(repeats + 1)][1:]
    return Speed(
        prefill=prompt / statistics.median(prefill for prefill, _ in runs),
        decode=new_tokens / statistics.median(decode for _, decode in runs),
        prompt=prompt,
        new_tokens=new_tokens,
        threads=torch.get_num_threads(),
        dtype=str(model.dtype).removeprefix("torch."),
    )


@torch.no_grad()
def greedy_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, new_tokens: int = 40
) -> str | None:
    """Return the model's greedy continuation of a prompt; a chat model gets the prompt as a user message.

    Return None where its chat template rejects the message.
    """
    encoded = (
        tokenizer(prompt, return_tensors="pt") if tokenizer.chat_template is None else _encode_chat(tokenizer, prompt)
    )
    if encoded is None:
        return None
    ids = encoded["input_ids"].to(model.device)
    mask = torch.ones_like(ids)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    generate: Any = model.generate
    written = generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=padding
    )
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _encode_chat(tokenizer: PreTrainedTokenizerBase, question: str) -> Any:
    """Return the encoded conversation of one user message, or None where the chat template fails on it."""
    messages = [{"role": "user", "content": question}]
    try:
        text = chat_template.written(tokenizer, messages, add_generation_prompt=True)
    except chat_template.TemplateFailed:
        log.exception("the chat template fails on a single user message")
        return None
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")


def _timed_run(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> tuple[float, float]:
    """Return the seconds that prefill and decoding take."""
    start = _now(model)
    outputs = model(ids, use_cache=True, logits_to_keep=1)
    read = _now(model)
    for _ in range(new_tokens):
        following = outputs.logits[:, -1:].argmax(-1)
        outputs = model(following, past_key_values=outputs.past_key_values, use_cache=True)
    return read - start, _now(model) - read


def _now(model: PreTrainedModel) -> float:
    """Return a clock reading in seconds, after the GPU has finished its work."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
