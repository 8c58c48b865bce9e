"""Carry out a plan: run its steps in order and store the parts that they produce.

    parts: list[CompressedPart] = []
    for done in compress(model, plan, ids, parts):
        print(done, "parts are finished")

Promise: called again with the parts that an earlier call has stored, it finishes as if it had not been interrupted.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from torch import Tensor

from modelpress.spec.plan import Plan
from workers.compression.math.sensitivity import Sensitivity
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import PartStore
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
    """Run the steps of `plan` on `model`, append each finished part to `parts`, and yield how many are finished.

    Args:
        model: the original, which is not changed; or an `EditedModel`, to which the new parts are applied.
        plan: the plan, made for this model.
        ids: calibration tokens [sequences, length].
        parts: the store, which already holds the first parts if an earlier call was interrupted. A store that reads
            parts from files keeps them out of memory.
        sensitivities: sensitivity of each target module, by name; needed to factor the embedding.
        checkpoints: stores the progress of a distillation within a part.
        seed: seed of the labels that are drawn where a step measures sensitivities itself.
    """
    edited = model if isinstance(model, EditedModel) else EditedModel(model)
    work = Work(model, edited, ids, sensitivities or {}, checkpoints, seed)
    ends = _ends(plan, model, len(edited.overlay.removed))
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
                del part  # free it before the next one is made
                yield len(parts)
        if not runner.applies_at_once and last < ends[-1]:
            for index in range(first, last):
                work.model.apply(parts[index])


def _ends(plan: Plan, model: StreamedModel, removed: int) -> list[int]:
    """Return, for each step, the number of parts that are finished after it."""
    ends, end = [], 0
    for labels in plan.labels_by_step(model.inventory, removed):
        end += len(labels)
        ends.append(end)
    return ends
