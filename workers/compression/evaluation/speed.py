"""What a whole model is like to use: its speed, and a sample of what it writes.

    speed(model.whole(), prompt=512, new_tokens=32)
    greedy_sample(model.whole(), tokenizer, "The capital of France is")

Dtype, device and the number of threads are those found.
"""

import logging
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """Tokens per second at batch 1, the median of some repeats after a warm-up.

    Prefill reads `prompt` tokens at once; decoding adds `new_tokens` one by one to a cache of that many.
    """

    prefill: float
    decode: float
    prompt: int
    new_tokens: int
    threads: int
    dtype: str


@torch.no_grad()
def speed(model: PreTrainedModel, *, prompt: int = 512, new_tokens: int = 32, repeats: int = 5) -> Speed:
    """Measures reading and writing on random tokens."""
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
    """What the model most likely goes on with; a chat model is asked the prompt as a question.

    None where its chat template refuses the question.
    """
    encoded = tokenizer(prompt, return_tensors="pt") if tokenizer.chat_template is None else _asked(tokenizer, prompt)
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


def _asked(tokenizer: PreTrainedTokenizerBase, question: str) -> Any:
    """The token ids of a conversation that begins with the question; None where the template fails on it."""
    messages = [{"role": "user", "content": question}]
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    except Exception:  # a template is a program of strangers, and may raise whatever it likes
        log.exception("the chat template fails on a question")
        return None


def _timed_run(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of prefill and of decoding."""
    start = _now(model)
    outputs = model(ids, use_cache=True, logits_to_keep=1)
    read = _now(model)
    for _ in range(new_tokens):
        following = outputs.logits[:, -1:].argmax(-1)
        outputs = model(following, past_key_values=outputs.past_key_values, use_cache=True)
    return read - start, _now(model) - read


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
