"""Whether a model of an inferred architecture computes the same block by block, and without a block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modelpress.spec.dimensions import block_of, renumbered, resized_config
from modelpress.spec.errors import CompressionError
from workers.compression.inferred.block import NotUnderstood, same
from workers.compression.inferred.tiny import random_model, run, said, tiny_config, token_ids
from workers.compression.models.streamed import StreamedModel

FAILURES = (CompressionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What transformers raises where it is called as it does not expect."""


def require_streamed(model_type: str) -> None:
    """Check that a tiny model, written and opened block by block by its architecture, computes its own logits.

    Raises NotUnderstood where it does not.
    """
    try:
        with _written(model_type) as (model, streamed):
            logits = _logits(streamed, streamed.kept)
    except FAILURES as error:
        raise NotUnderstood(f"its blocks cannot be run one by one ({said(error)})") from error
    if not same(logits, run(model)):
        raise NotUnderstood("run block by block, it computes something else than in one piece")


def may_be_shallower(model_type: str) -> bool:
    """Return whether a model without one of its blocks computes what the other blocks do."""
    try:
        with _written(model_type) as (model, streamed):
            blocks, prefix = len(streamed.kept), streamed.inventory.block_prefix
            kept = [0, *range(2, blocks)]
            fewer = resized_config(model.config.to_dict(), kept, blocks)
            smaller = random_model(type(model.config).from_dict(fewer))
            smaller.load_state_dict(
                {
                    renumbered(name, prefix, kept): tensor
                    for name, tensor in model.state_dict().items()
                    if block_of(name, prefix) in (None, *kept)
                }
            )
            return same(_logits(streamed, kept), run(smaller))
    except FAILURES:
        return False


@contextmanager
def _written(model_type: str) -> Iterator[tuple[PreTrainedModel, StreamedModel]]:
    """Write a tiny model, and yield it with the same one opened block by block."""
    model = random_model(tiny_config(model_type))
    with TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        yield model, StreamedModel.open(Path(directory))


@torch.no_grad()
def _logits(streamed: StreamedModel, blocks: Sequence[int]) -> Tensor:
    """Return the logits of `token_ids()` through some blocks, one by one."""
    hidden = streamed.hidden(token_ids())
    for index in blocks:
        with streamed.block(index) as block:
            hidden = streamed.run(block, index, hidden)
    return streamed.logits(hidden)
