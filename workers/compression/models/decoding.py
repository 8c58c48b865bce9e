"""Writing many sequences side by side, one token each at a time, as fast as a CPU reads keys and values.

    with decoding(model) as decode:
        logits = decode(tokens)        # the newest token of each row, [rows] -> [rows, V]

Promise: what the model itself computes for the same tokens at once, up to rounding. All rows are of one length.
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
"""Tokens that a cache makes room for at a time."""


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function that takes the next token of each row, [rows], and gives the logits after it, [rows, V].

    The model evaluates meanwhile, with attention of its own; both are put back. A second context is a second beginning.
    """
    attention, training = model.config._attn_implementation, model.training
    cache = roomy_cache(model)

    def decode(tokens: Tensor) -> Tensor:
        outputs = model(tokens[:, None].to(model.device), past_key_values=cache, use_cache=True)
        logits: Tensor = outputs.logits[:, -1]
        return logits

    AttentionInterface.register(SINGLE_QUERY, partial(attend_singly, cache=cache))
    model.train(False)
    model.set_attn_implementation(SINGLE_QUERY)
    try:
        yield decode
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
        # The register holds what is registered, and with it this cache, for as long as the process lives.
        cache.layers.clear()


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The keys and values of one block, [rows, groups, room, D], with room for those to come; `update` returns it all.

    Appending copies everything at each token, and part of a larger tensor is copied before it is multiplied: either
    takes longer than the rest of the model. Room that is filled later avoids both.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
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
        return self.used


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """A cache for the model; blocks that attend to a window keep transformers' own layer, which holds no more."""
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
    """Attention of one new token, query [N, heads, 1, D], to what its cache returns, [N, groups, T, D] each.

    Two plain products, the heads of a group side by side: on a CPU several times faster than the fused kernels, which
    are made for many queries. A cache holds nothing that the newest token may not see, so only room is masked.
    """
    rows, heads, _one, width = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    scores = (grouped @ key.transpose(2, 3)).float() * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores[..., cache.get_seq_length() :] = -torch.inf
    attended = scores.softmax(-1).to(value.dtype) @ value
    return attended.view(rows, 1, heads, value.shape[-1]), None
