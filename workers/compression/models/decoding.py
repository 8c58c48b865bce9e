"""Decode many sequences side by side, one token each per step, with a cache that is fast on a CPU.

    with decoding(model) as decode:
        logits = decode(tokens)        # the newest token of each row, [rows] -> [rows, V]

Promise: the logits equal those of one forward pass over the same tokens, up to rounding. All rows have one length.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

SINGLE_QUERY = "modelpress_single_query"
ROOM = 128
"""Tokens by which a full cache grows."""
PROBED = 4
"""Tokens on which this module's attention is compared with the model's own."""
PROBE_TOLERANCE = 0.05
"""Largest difference of the logits, relative to them, that is rounding."""


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function that takes the next token of each row [rows] and returns the logits after it [rows, V].

    Meanwhile the model is in evaluation mode; it uses an attention function of this module if that computes what the
    model's own does. Both are restored afterwards. Each context starts with an empty cache.
    """
    training = model.training
    model.train(False)
    try:
        with (_quickly if _computes_the_same(model) else _plainly)(model) as decode:
            yield decode
    finally:
        model.train(training)


@torch.no_grad()
def _computes_the_same(model: PreTrainedModel) -> bool:
    """Return whether the attention of this module gives the logits of the model's own on a few tokens.

    It does not where attention has biases by position, sinks, or code of its own.
    """
    tokens = torch.arange(1, PROBED + 1, device=model.device)[None]
    expected = model(tokens, use_cache=False).logits[:, -1].float()
    try:
        with _quickly(model) as decode:
            found = [decode(token) for token in tokens.T][-1].float()
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    return bool((found - expected).norm() <= PROBE_TOLERANCE * expected.norm())


@contextmanager
def _plainly(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """Decode with the model's own attention and transformers' own cache."""
    cache = DynamicCache(config=model.config)
    yield partial(_next_logits, model, cache)
    cache.layers.clear()


@contextmanager
def _quickly(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """Decode with the attention and the cache of this module."""
    attention = model.config._attn_implementation
    cache = roomy_cache(model)
    AttentionInterface.register(SINGLE_QUERY, partial(attend_singly, cache=cache))
    model.set_attn_implementation(SINGLE_QUERY)
    try:
        yield partial(_next_logits, model, cache)
    finally:
        model.set_attn_implementation(attention)
        # The registry keeps the function, and with it this cache, until the process ends.
        cache.layers.clear()


def _next_logits(model: PreTrainedModel, cache: DynamicCache, tokens: Tensor) -> Tensor:
    """Return the logits [rows, V] after the next token of each row [rows]."""
    outputs = model(tokens[:, None].to(model.device), past_key_values=cache, use_cache=True)
    logits: Tensor = outputs.logits[:, -1]
    return logits


class RoomyLayer(DynamicLayer):
    """The keys and values of one block, [rows, groups, capacity, D], preallocated beyond the tokens that are used.

    Appending would copy everything at each token, and a slice of a larger tensor is copied before it is multiplied.
    Either takes longer than the rest of the model, so `update` returns the whole buffer, and attention masks its unused
    end.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [rows, groups, T, D]; return the whole buffers, whose unused end holds zeros."""
        start, self.used = self.used, self.used + key_states.shape[2]
        keys, values = self.keys, self.values
        if keys is None or values is None:
            self.lazy_initialization(key_states, value_states)
            keys, values = key_states[:, :, :0], value_states[:, :, :0]
        if self.used > keys.shape[2]:
            keys, values = (functional.pad(held, (0, 0, 0, ROOM)) for held in (keys, values))
        keys[:, :, start : self.used] = key_states
        values[:, :, start : self.used] = value_states
        self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        """Return how many tokens the cache holds."""
        return self.used


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache for the model; blocks with windowed attention keep transformers' own cache layer."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def attend_singly(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    *,
    cache: DynamicCache,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend with one new token per row, query [N, heads, 1, D], to the cached keys and values, [N, groups, T, D] each.

    Return the output [N, 1, heads, D] and no attention weights. Two plain matrix products, with the heads of a group
    side by side, are several times faster on a CPU than the fused kernels, which are built for many queries. The newest
    token may see the whole cache, so only the cache's unused end is masked.
    """
    rows, heads, _one, width = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    scores = (grouped @ key.transpose(2, 3)).float() * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores[..., cache.get_seq_length() :] = -torch.inf
    attended = scores.softmax(-1).to(value.dtype) @ value
    return attended.view(rows, 1, heads, value.shape[-1]), None
