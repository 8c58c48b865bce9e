"""Compression in phases: some parts are made, then the whole model is trained, then the next parts are made of that.

    for phase in phases(model.inventory, plan, 3):
        for part in compress_phase(model, plan, ids, phase, finished=kept.__getitem__):
            kept.append(part)
        ...                      # train EditedModel(original, kept).whole(), and keep that as the part `phase.trained`

What TQCompressor calls multi-step (arXiv 2401.16367): each matrix is factored in a model that has got over the loss of
those before it. Its released configuration goes from the embedding to the MLPs and halves the embedding once more; here
the embedding is factored once, and all goes from the first block to the last, since that is the order in which a part
is fitted to what the parts before it have become. The plan is made once, of the original, so that its target is met.

Promise: resumed behind any part, the rest is the same as without the interruption.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise

from torch import Tensor

from workers.compression import pipeline
from workers.compression.math.sensitivity import Sensitivity
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart, Finished
from workers.compression.spec.dimensions import block_of
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.plans import Plan
from workers.compression.steps import factor as sequential


@dataclass(frozen=True)
class Phase:
    """Some parts, numbered as without phases, and a training. Each phase before it has left one part more: what its
    training made of the model."""

    number: int
    parts: range

    @property
    def first(self) -> int:
        """The number of its first part among all, trained ones included."""
        return self.parts.start + self.number

    @property
    def trained(self) -> int:
        """The number among all of the part that its training leaves, behind its others."""
        return self.parts.stop + self.number


def phases(inventory: Inventory, plan: Plan, count: int = 1) -> tuple[Phase, ...]:
    """So many phases, or fewer where the plan compresses fewer parts; each compresses as many of them, or one more.

    Several need a plan that neither removes blocks nor narrows them.
    """
    planned = sorted({_part_of(site, inventory) for site in plan.structures})
    count = max(1, min(count, len(planned)))
    starts = [planned[len(planned) * number // count] for number in range(1, count)]
    bounds = [0, *starts, pipeline.part_count(inventory, plan)]
    return tuple(Phase(number, range(start, stop)) for number, (start, stop) in enumerate(pairwise(bounds)))


def compress_phase(
    model: StreamedModel,
    plan: Plan,
    ids: Tensor,
    phase: Phase,
    *,
    sensitivities: Mapping[str, Sensitivity] | None = None,
    start: int = 0,
    finished: Finished,
) -> Iterator[CompressedPart]:
    """Yields the phase's parts from the number `start` on, all numbered among all.

    They replace matrices of what the phases before have made of `model`, the original, and are fitted to what flows
    through that. `finished` gives every part before the phase, and those of the phase that have been yielded. See
    `sequential.compress` for the other arguments.
    """

    def before(index: int) -> CompressedPart:
        if index in phase.parts:
            return finished(index + phase.number)
        return CompressedPart(index, "", {}, {}, {})  # the model below has it already

    reached = max(start, phase.first)
    trained = EditedModel(model, map(finished, range(phase.first)))
    parts = sequential.compress(
        trained, plan, ids, sensitivities=sensitivities, start=reached - phase.number, finished=before
    )
    for part in islice(parts, phase.trained - reached):
        yield dataclasses.replace(part, index=part.index + phase.number)


def _part_of(site: str, inventory: Inventory) -> int:
    """The number of the part of `sequential.compress` that a site of a plan belongs to."""
    block = block_of(site, inventory.block_prefix)
    if block is not None:
        return block + 1
    return inventory.blocks + 1 if inventory.head is not None and site == inventory.head.name else 0
