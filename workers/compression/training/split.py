"""A language model in two: what enters its output head, and the logits of so many of these states at a time.

The logits of a batch are by far the largest thing that training would hold. Made in slices, they need not exist at
once. No architecture's forward is repeated here: the head is the model's own forward around a decoder that does
nothing, so that whatever a model does to its logits, such as soft-capping, is done.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from workers.compression.spec.architectures import ARCHITECTURES

LOGITS = 2**25
"""How many logits of a model exist at a time."""


def states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Token ids [N, T] to what enters the output head, [N, T, E]."""
    found: Tensor = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
    return found


def logits(model: PreTrainedModel, entering: Tensor) -> Tensor:
    """What enters the output head, [n, E], to logits [n, V]."""
    with _passing_through(model):
        found: Tensor = model(inputs_embeds=entering[None], use_cache=False).logits
    return found[0]


def slices(tokens: int, vocabulary: int, numbers: int = LOGITS) -> Iterator[slice]:
    """All tokens in slices, each with at most so many logits, but of at least one token."""
    size = max(1, numbers // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """What passes the blocks meanwhile keeps none of their activations: a backward pass computes them again."""
    passed = blocks(model)
    for block in passed:
        # Nothing is drawn at random: a model that evaluates drops nothing out.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in passed:
            del block.forward


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """In order."""
    return list(model.get_submodule(ARCHITECTURES[model.config.model_type].blocks).children())


def decoder(model: PreTrainedModel) -> nn.Module:
    """All but the output head: embedding, blocks and final norm."""
    found: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return found


@contextmanager
def _passing_through(model: PreTrainedModel) -> Iterator[None]:
    """For a while the embeddings that the decoder is called with pass it by, and the hooks on it."""
    whole = decoder(model)
    name = next(name for name, module in model.named_modules() if module is whole)
    model.set_submodule(name, _Passage())
    try:
        yield
    finally:
        model.set_submodule(name, whole)


class _Passage(nn.Module):
    """Stands in the place of a decoder."""

    def forward(self, *others: Any, inputs_embeds: Tensor, **more: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)
