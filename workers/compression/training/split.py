"""Run a language model's decoder and its output head apart, the head on a slice of the decoder's states at a time.

The logits of a batch are by far the largest tensor in training; computed in slices, they never exist at once. No
architecture's forward is repeated here: the head runs as the model's own forward around a decoder that does nothing,
so that a model's own treatment of logits, such as soft-capping, is included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from modelpress.spec.architectures import architecture_named

LOGITS, CARD_LOGITS = 2**25, 2**27
"""The most logits of a model that exist at a time on a CPU, and on a card, where a slice has to outlast its launch."""


def states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the states [N, T, E] that enter the output head for token ids [N, T]."""
    hidden: Tensor = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def logits(model: PreTrainedModel, entering: Tensor) -> Tensor:
    """Return the logits [n, V] for states [n, E] that enter the output head."""
    with _without_decoder(model):
        computed: Tensor = model(inputs_embeds=entering[None], use_cache=False).logits
    return computed[0]


def logits_at_a_time(device: torch.device) -> int:
    """Return the most logits of a model that exist at a time on a device."""
    return LOGITS if device.type == "cpu" else CARD_LOGITS


def slices(tokens: int, vocabulary: int, numbers: int) -> Iterator[slice]:
    """Yield slices that cover `tokens`, each with at most `numbers` logits, but of at least one token."""
    size = max(1, numbers // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Recompute the activations of each block in the backward pass instead of storing them, inside the context."""
    passed = blocks(model)
    for block in passed:
        # Nothing is drawn at random: a model in evaluation mode drops nothing out.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in passed:
            del block.forward


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Return the model's blocks in order."""
    return list(model.get_submodule(architecture_named(model.config.model_type).blocks).children())


def decoder(model: PreTrainedModel) -> nn.Module:
    """Return the model without its output head: embedding, blocks and final norm."""
    return model.get_submodule(architecture_named(model.config.model_type).blocks.rpartition(".")[0])


@contextmanager
def _without_decoder(model: PreTrainedModel) -> Iterator[None]:
    """Temporarily replace the decoder by an identity on `inputs_embeds`: calling the model applies only its head.

    The decoder's hooks do not run meanwhile.
    """
    whole = decoder(model)
    name = next(name for name, module in model.named_modules() if module is whole)
    model.set_submodule(name, _Identity(whole))
    try:
        yield
    finally:
        model.set_submodule(name, whole)


class _Output(BaseModelOutputWithPastAndCrossAttentions):
    """The output of a decoder. What some return besides, for a head to pass on, is None."""

    def __getattr__(self, name: str) -> None:
        return None


class _Identity(nn.Module):
    """A decoder that returns the embeddings it is called with, and has the attributes of the one that it replaces."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self._replaced = (replaced,)  # in a tuple, so as not to become a submodule, which is listed twice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replaced[0], name)

    def forward(self, *others: Any, inputs_embeds: Tensor, **more: Any) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)
