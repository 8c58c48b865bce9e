"""Which method serves a model best at a ratio: each one is tried, and judged on text that it did not see.

    tried = list(trials(model, 1.3, ids))
    best = min(tried, key=lambda trial: trial.perplexity).method

Promise: no candidate has seen the text that judges it, and none leaves a trace in the model.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.evaluation.fidelity import perplexity
from workers.compression.math.allocation import measured_plan
from workers.compression.math.sensitivity import measure
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.pipeline import compress, evenly_spread
from workers.compression.spec.catalog import is_measured
from workers.compression.spec.errors import CompressionError
from workers.compression.spec.ranges import candidates

log = logging.getLogger(__name__)

Keep = Callable[[CompressedPart], CompressedPart]

JUDGING = 4
"""Every so many sequences one judges."""

TRIED_TOKENS = 4096
"""On so many tokens a method is tried, and by so many it is judged, at most: a trial must not cost what a job costs."""


@dataclass(frozen=True)
class Trial:
    """What a method made of the model: the perplexity on the text that was kept back."""

    method: str
    perplexity: float


def trials(
    model: StreamedModel, target_ratio: float, ids: Tensor, *, keep: Keep = lambda part: part, seed: int = 0
) -> Iterator[Trial]:
    """Yields what each candidate makes of the model; one that fails on it, or leaves no finite perplexity, is left out.

    `ids` are calibration tokens [sequences, length]; of a single sequence the second half judges. `keep` may put a part
    into a file and return one that reads it from there, so that the tried model need not be in memory.
    """
    seen, kept_back = divided(ids)
    for name in candidates(model.inventory, target_ratio):
        try:
            tried = EditedModel(model, _tried(EditedModel(model), name, target_ratio, seen, keep, seed))
            left = perplexity(tried, kept_back).value
        except (CompressionError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            log.warning("%s does not fit this model: %s", name, error)
            continue
        if math.isfinite(left):
            yield Trial(name, left)


def divided(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The sequences on which methods are tried, and those that judge, both from all over the text."""
    ids = ids if len(ids) > 1 else ids[:, : ids.shape[1] // 2 * 2].view(2, -1)
    judges = torch.arange(1, len(ids) + 1) % min(JUDGING, len(ids)) == 0
    most = max(1, TRIED_TOKENS // ids.shape[1])
    return evenly_spread(ids[~judges], most), evenly_spread(ids[judges], most)


def _tried(
    model: EditedModel, name: str, target_ratio: float, ids: Tensor, keep: Keep, seed: int
) -> list[CompressedPart]:
    measured = {}
    if is_measured(name):
        measured = {site: found for part in measure(model, ids, seed=seed) for site, found in part.items()}
    plan = measured_plan(model.inventory, name, target_ratio, measured)
    parts: list[CompressedPart] = []
    for part in compress(model, plan, ids, sensitivities=measured, finished=parts.__getitem__, seed=seed):
        parts.append(keep(part))  # noqa: PERF401 - `finished` reads the list while it grows
    return parts
