"""FuseGPT as published (arXiv 2411.14507), for comparison.

One block after another is chosen, taken up by its group, and removed before the next one is chosen.

Its teacher is the model as it was before the removal, so errors accumulate unseen, and its loss does not see a shift
that all sequences of a batch share; `fusion` differs in both.

Promise: killed and resumed, also within a distillation, it gives the same parts.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from workers.compression.parts import CompressedPart
from workers.compression.spec.steps import Fuse
from workers.compression.steps.absorb import (
    Absorption,
    absorb,
    following,
    survivors_around,
)
from workers.compression.steps.grafting import GraftRanks
from workers.compression.steps.influence import BlockScores, next_removals
from workers.compression.steps.local_distillation import LocalDistillationSettings
from workers.compression.steps.streams import Stream
from workers.compression.steps.work import Work

EPOCHS = 20
"""Passes over the calibration text for each removed block; the paper takes 1024 sequences of 2048 tokens."""


def fusegpt(tokens: int) -> Absorption:
    """Return the published hyper-parameters; each removed block is distilled on `tokens`, in the model's own dtype."""
    return Absorption(
        LocalDistillationSettings(
            tokens=tokens,
            batch_size=8,
            learning_rate=9.65e-6,
            coefficient_learning_rate=1e-3,
            betas=(0.9, 0.95),
            epsilon=1e-8,
            warmup_ratio=0.0,
            max_gradient_norm=math.inf,
            loss="batch_divergence",
            float32=False,
        ),
        survivors=7,
        ranks=GraftRanks(coefficients=128, correction=128),
    )


def run(step: Fuse, work: Work, finished: Sequence[CompressedPart]) -> Iterator[CompressedPart]:
    """Yield one part for each block that goes, behind the finished ones."""
    in_all = EPOCHS * work.ids.numel() * step.count if step.tokens is None else step.tokens
    going = next_removals(work.model, work.ids, step.count - len(finished), step.criterion)
    yield from fuse_each(work, going, fusegpt(-(-in_all // step.count)))


def fuse_each(
    work: Work, removals: Iterable[tuple[int, BlockScores]], settings: Absorption
) -> Iterator[CompressedPart]:
    """Yield one part for each of the removals, which must be in `work.model` before the next one is asked for."""
    model, stream = work.model, Stream(work.model, work.ids)
    for block, scores in removals:
        group = survivors_around(model.kept, block, settings.survivors)
        entering = stream.entering(min(group[0], block))
        targets = stream.entering(following(model, max(group[-1], block), block))
        name = f"{model.inventory.block_prefix}.{block}"
        with model.block(block) as donor:
            found = absorb(model, group, donor, entering, targets, settings, work.observer(name))
        yield CompressedPart(
            name, tensors=found.tensors, errors={name: found.error}, removed=(block,), scores=scores.values
        )
        stream.forget(min(group[0], block))
