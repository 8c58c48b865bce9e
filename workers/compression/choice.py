"""Which method serves a model best at a ratio: each one is tried, and judged on text that it did not see.

    tried = list(trials(model, AUTO.candidates(model.inventory, 1.3, AUTO.options()), 1.3, ids))
    best = min(tried, key=lambda trial: trial.perplexity).method

Promise: no candidate has seen the text that judges it, and none leaves a trace in the model.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.evaluation.fidelity import perplexity
from workers.compression.math.sensitivity import measure_all, site_errors
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import PartStore
from workers.compression.pipeline import compress
from workers.compression.spec.methods import MethodOptions, Need, planner_of
from workers.compression.steps.influence import evenly_spread

log = logging.getLogger(__name__)

JUDGING = 4
"""One sequence in this many judges."""

TRIED_TOKENS = 4096
"""On this many tokens a method is tried, and by as many it is judged, at most: a trial must not cost what a job
costs."""


@dataclass(frozen=True)
class Trial:
    """What a method made of the model: the perplexity on the text that was kept back."""

    method: MethodOptions
    perplexity: float


def trials(
    model: StreamedModel,
    candidates: Sequence[MethodOptions],
    ratio: float,
    ids: Tensor,
    *,
    store: Callable[[], PartStore] = list,
    seed: int = 0,
) -> Iterator[Trial]:
    """Yield what each candidate makes of the model; leave out one that fails on it or leaves no finite perplexity.

    `ids` are calibration tokens [sequences, length]; of a single sequence the second half judges. `store` gives an
    empty store for the parts of one trial, which may keep them in files.
    """
    seen, kept_back = divided(ids)
    for options in candidates:
        try:
            tried = EditedModel(model, _compressed(model, options, ratio, seen, store(), seed))
            left = perplexity(tried, kept_back).value
        except (MemoryError, torch.OutOfMemoryError, OSError):
            raise
        except Exception as error:  # whatever a method cannot do with this model, the others are still there
            log.warning("%s does not fit this model: %s", options.name, error, exc_info=True)
            continue
        if math.isfinite(left):
            yield Trial(options, left)


def divided(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sequences on which methods are tried and those that judge, both from all over the text `ids`
    [sequences, length]."""
    ids = ids if len(ids) > 1 else ids[:, : ids.shape[1] // 2 * 2].view(2, -1)
    judges = torch.arange(1, len(ids) + 1) % min(JUDGING, len(ids)) == 0
    most = max(1, TRIED_TOKENS // ids.shape[1])
    return evenly_spread(ids[~judges], most), evenly_spread(ids[judges], most)


def _compressed(
    model: StreamedModel, options: MethodOptions, ratio: float, ids: Tensor, parts: PartStore, seed: int
) -> PartStore:
    method = planner_of(options)
    measured = (
        measure_all(model, ids, seed=seed, tiled=method.tiled(options)) if Need.SENSITIVITIES in method.needs else {}
    )
    plan = method.plan(model.inventory, ratio, options, site_errors(measured))
    for _ in compress(model, plan, ids, parts, sensitivities=measured, seed=seed):
        pass
    return parts
