"""Carry out a plan: walk its steps, keep every part that they leave.

    parts: list[CompressedPart] = []
    for done in compress(model, plan, ids, parts):
        print(done, "parts are finished")

Promise: called again with what an earlier call has kept, the rest is the same as without the interruption.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from torch import Tensor

from workers.compression.math.sensitivity import Sensitivity
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import PartStore
from workers.compression.spec.plan import Plan
from workers.compression.steps import RUNNERS
from workers.compression.steps.work import CheckpointStore, Work


def compress(
    model: StreamedModel,
    plan: Plan,
    ids: Tensor,
    parts: PartStore,
    *,
    sensitivities: Mapping[str, Sensitivity] | None = None,
    checkpoints: CheckpointStore | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Append the parts that `plan` leaves of `model` to `parts`, one after another; yield how many are finished.

    `parts` holds the first ones already where an earlier call was interrupted. Given a store that reads them from
    files, what the later parts build on need not stay in memory.

    Args:
        model: the original, which stays as it is; or what earlier parts have made of it, which takes on new ones.
        ids: calibration tokens [sequences, length].
        sensitivities: what an error costs at each site, by its name; needed to factor the embedding.
        checkpoints: keeps how far a distillation within a part is.
        seed: of the labels that are drawn where a step measures sensitivities itself.
    """
    edited = model if isinstance(model, EditedModel) else EditedModel(model)
    work = Work(model, edited, ids, sensitivities or {}, checkpoints, seed)
    ends = _ends(plan, model)
    for step, (first, last) in zip(plan.steps, pairwise((0, *ends)), strict=True):
        runner = RUNNERS[type(step)]
        finished = [parts[index] for index in range(first, min(last, len(parts)))]
        if runner.applies_at_once:
            for part in finished:
                work.model.apply(part)
        if len(finished) < last - first:
            for part in runner.run(step, work, finished):
                parts.append(part)
                if runner.applies_at_once:
                    work.model.apply(parts[len(parts) - 1])
                del part  # or it stays in memory beside the next one
                yield len(parts)
        if not runner.applies_at_once and last < ends[-1]:
            for index in range(first, last):
                work.model.apply(parts[index])


def _ends(plan: Plan, model: StreamedModel) -> list[int]:
    """Return, for each step, the number of parts that are finished behind it."""
    ends, end = [], 0
    for labels in plan.labels_by_step(model.inventory):
        end += len(labels)
        ends.append(end)
    return ends
