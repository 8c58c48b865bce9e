"""What a model is worth: perplexity, stored size, speed, and a sample of what it writes.

    perplexity(model, windows)    # model: StreamedModel of an original or a package; windows: token ids [W, T]
    stored_size(directory)        # from the headers, one count per distinct tensor
    speed(model.whole(), prompt=512, new_tokens=32)
    greedy_sample(model.whole(), tokenizer, "The capital of France is")

Perplexity streams the model block by block and so needs little more memory than a block; speed and sample need the
whole. Dtype, device and the number of threads are those found.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.compression.accounting.architectures import original_config, read_config, weights
from workers.compression.accounting.headers import stored_tensors
from workers.compression.models.streamed import StreamedModel

HIDDEN_BYTES = 64 * 2**20
"""Hidden states that perplexity keeps at a time; a longer text makes several passes over the blocks."""

LOGIT_BYTES = 64 * 2**20
"""Logits that perplexity forms at a time, in fp32."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of `tokens` predicted tokens."""

    value: float
    tokens: int


@dataclass(frozen=True)
class Size:
    """Stored numbers and their bytes in the weight files, one count per distinct tensor."""

    parameters: int
    bytes: int


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
def perplexity(model: StreamedModel, windows: Tensor, *, batch: int = 4) -> Perplexity:
    """Perplexity over token ids [W, T], each window on its own: its first token is context only.

    `batch` windows pass through a block at a time. Raises ValueError for windows of fewer than two tokens.
    """
    count, length = windows.shape
    if count < 1 or length < 2:
        raise ValueError(f"perplexity needs windows of at least two tokens; these are {count} of {length}")
    kept = max(1, HIDDEN_BYTES // (length * model.inventory.hidden_size * model.dtype.itemsize))
    total = math.fsum(_negative_log_likelihood(model, group, batch) for group in torch.split(windows, kept))
    predicted = count * (length - 1)
    return Perplexity(math.exp(total / predicted), predicted)


def stored_size(directory: Path) -> Size:
    """The size of an original or a package."""
    config, _ = original_config(read_config(directory))
    tensors = stored_tensors(directory)
    counted = [tensors[name] for name in weights(config, tensors).values()]
    return Size(sum(math.prod(tensor.shape) for tensor in counted), sum(tensor.bytes for tensor in counted))


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
) -> str:
    """What the model most likely goes on with; a chat model is asked the prompt as a question."""
    if tokenizer.chat_template is None:
        encoded = tokenizer(prompt, return_tensors="pt")
    else:
        messages = [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    ids = encoded["input_ids"].to(model.device)
    mask = torch.ones_like(ids)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    generate: Any = model.generate
    written = generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=padding
    )
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _negative_log_likelihood(model: StreamedModel, windows: Tensor, batch: int) -> float:
    """The sum over all predicted tokens of `windows` [W, T]."""
    with model.embedder() as embed:
        states = [embed(some) for some in torch.split(windows, batch)]
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            for number, hidden in enumerate(states):
                states[number] = model.run(block, index, hidden)
    chunk = max(1, LOGIT_BYTES // (4 * batch * model.inventory.vocab_size))
    with model.head() as head:
        return math.fsum(
            _chunked_loss(head, hidden, some.to(model.device), chunk)
            for hidden, some in zip(states, torch.split(windows, batch), strict=True)
        )


def _chunked_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor, chunk: int) -> float:
    total = 0.0
    contexts, following = torch.split(hidden[:, :-1], chunk, dim=1), torch.split(ids[:, 1:], chunk, dim=1)
    for states, targets in zip(contexts, following, strict=True):
        logits = head(states).float().flatten(0, 1)
        total += functional.cross_entropy(logits, targets.flatten(), reduction="sum").item()
    return total


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
