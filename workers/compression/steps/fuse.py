"""FuseGPT as it was published (arXiv 2411.14507), to be compared with: one block after another is chosen, taken up by
its group, and removed before the next one is chosen.

    for part in fuse_one_by_one(edited, ids, removals(edited, ids, 8), fusegpt(tokens)):
        ...                                           # one part per removed block, durable

Its teacher is the model as it was before the removal, so that errors add up unseen, and its loss is blind to what the
sequences of a batch share; `fusion` differs in both.

Promise: killed and resumed, also within a distillation, it gives the same parts.
"""

import math
from collections.abc import Iterable, Iterator

from torch import Tensor

from workers.compression.models.edited import EditedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.absorb import (
    Absorption,
    CheckpointStore,
    absorb,
    following,
    survivors_around,
)
from workers.compression.steps.grafting import Ranks
from workers.compression.steps.influence import BlockScores
from workers.compression.steps.local_distillation import Distillation
from workers.compression.steps.streams import Stream

EPOCHS = 20
"""Passes over the text for each removed block: as published, over 1024 sequences of 2048 tokens."""


def fusegpt(tokens: int) -> Absorption:
    """The published hyper-parameters, in the model's own dtype, with so many tokens of distillation for each block."""
    return Absorption(
        Distillation(
            tokens=tokens,
            batch=8,
            rate=9.65e-6,
            coefficient_rate=1e-3,
            betas=(0.9, 0.95),
            epsilon=1e-8,
            warm_up=0.0,
            clip=math.inf,
            loss="batch_divergence",
            float32=False,
        ),
        survivors=7,
        ranks=Ranks(coefficients=128, correction=128),
    )


def fuse_one_by_one(
    edited: EditedModel,
    ids: Tensor,
    removals: Iterable[tuple[int, BlockScores]],
    settings: Absorption,
    *,
    start: int = 0,
    checkpoints: CheckpointStore | None = None,
) -> Iterator[CompressedPart]:
    """Yields one part for each of the `removals`, numbered from `start` on, and applies it to `edited`.

    `ids` are calibration tokens [sequences, length]. When resuming, `edited` has the parts before `start`, and
    `removals` are those still to come.
    """
    stream = Stream(edited, ids)
    for index, (block, scores) in enumerate(removals, start):
        group = survivors_around(edited.kept, block, settings.survivors)
        entering = stream.entering(min(group[0], block))
        targets = stream.entering(following(edited, max(group[-1], block), block))
        with edited.block(block) as donor:
            found = absorb(edited, group, donor, entering, targets, settings, index, checkpoints)
        name = f"{edited.inventory.block_prefix}.{block}"
        part = CompressedPart(
            index, name, {}, found.tensors, {name: found.error}, removed=(block,), scores=scores.values
        )
        edited.apply(part)
        stream.forget(min(group[0], block))
        yield part
