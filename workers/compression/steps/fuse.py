"""FuseGPT as published (arXiv 2411.14507), for comparison.

Blocks are removed one after another. Each is distilled into its group of blocks before the next one is chosen.

The teacher is the model before each removal, so errors accumulate without being seen. The loss ignores a shift that all
sequences of a batch share. The method `fusion` differs in both.

Promise: a run that is killed and resumed, also within a distillation, yields the same parts.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from modelpress.spec.steps import Fuse
from workers.compression.parts import CompressedPart
from workers.compression.steps.absorb import (
    Absorption,
    absorb,
    next_block,
    survivors_around,
)
from workers.compression.steps.grafting import GraftRanks
from workers.compression.steps.influence import BlockScores, next_removals
from workers.compression.steps.local_distillation import LocalDistillationSettings
from workers.compression.steps.streams import Stream
from workers.compression.steps.work import Work

EPOCHS = 20
"""Passes over the calibration text for each removed block. The paper uses 1024 sequences of 2048 tokens."""


def fusegpt(tokens: int) -> Absorption:
    """Return the published hyper-parameters (arXiv 2411.14507), in the model's own dtype.

    Each removed block is distilled over `tokens` tokens.
    """
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
    """Yield one part for each block to remove, after the `finished` ones."""
    in_all = EPOCHS * work.ids.numel() * step.count if step.tokens is None else step.tokens
    going = next_removals(work.model, work.ids, step.count - len(finished), step.criterion)
    yield from fuse_each(work, going, fusegpt(-(-in_all // step.count)))


def fuse_each(
    work: Work, removals: Iterable[tuple[int, BlockScores]], settings: Absorption
) -> Iterator[CompressedPart]:
    """Yield one part for each of the removals, with the tensors of its group.

    The caller must apply each part to `work.model` before it asks for the next one.

    Raises:
        Diverged: if a distillation finds no finite loss even at lower learning rates.
    """
    model, stream = work.model, Stream(work.model, work.ids)
    for block, scores in removals:
        group = survivors_around(model.kept, block, settings.survivors)
        entering = stream.entering(min(group[0], block))
        targets = stream.entering(next_block(model, max(group[-1], block), block))
        name = f"{model.inventory.block_prefix}.{block}"
        with model.block(block) as donor:
            found = absorb(model, group, donor, entering, targets, settings, work.observer(name))
        yield CompressedPart(
            name, tensors=found.tensors, errors={name: found.error}, removed=(block,), scores=scores.values
        )
        stream.forget(min(group[0], block))
