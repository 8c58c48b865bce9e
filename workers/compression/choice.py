"""Choose the method that serves a model best at a ratio: try each one and judge it on text that it has not seen.

    tried = list(trials(model, candidates(model.inventory, AUTO.options(), wanted), ids))
    best = min(tried, key=lambda trial: trial.perplexity).candidate

Promise: no candidate has seen the text that judges it, and none changes the model.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelpress.spec.methods import MethodOptions, Need, planner_of
from modelpress.spec.sizes import Candidate
from workers.compression.drawing import evenly_spread
from workers.compression.evaluation.fidelity import perplexity
from workers.compression.math.sensitivity import measure_all, site_errors
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import PartStore
from workers.compression.pipeline import compress

log = logging.getLogger(__name__)

JUDGING = 4
"""One sequence in this many is held out."""

TRIED_TOKENS = 4096
"""Upper bound of tokens on which a method is tried, and of tokens that judge it: a trial must cost much less than a
job."""


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried, and the compressed model's perplexity on the held-out text, before rounding."""

    candidate: Candidate
    perplexity: float


def trials(
    model: StreamedModel,
    candidates: Sequence[Candidate],
    ids: Tensor,
    *,
    store: Callable[[], PartStore] = list,
    seed: int = 0,
) -> Iterator[Trial]:
    """Yield a trial of each candidate; skip one that fails on the model or leaves no finite perplexity.

    Args:
        model: the original model, which is not changed.
        candidates: the methods to try, with their options and the structural ratio of each.
        ids: calibration tokens [sequences, length]; the second half of a single sequence is held out.
        store: returns an empty store for the parts of one trial, which may keep them in files.
        seed: seed of the labels from which sensitivities are measured.
    """
    seen, kept_back = split_calibration(ids)
    for candidate in candidates:
        options = candidate.method
        try:
            tried = EditedModel(model, _compress_by(model, options, candidate.structure, seen, store(), seed))
            left = perplexity(tried, kept_back).value
        except (MemoryError, torch.OutOfMemoryError, OSError):
            raise
        except Exception as error:  # whatever a method cannot do with this model, the others are still there
            log.warning("skip the method %s, which fails on this model: %s", options.name, error, exc_info=True)
            continue
        if math.isfinite(left):
            yield Trial(candidate, left)


def split_calibration(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sequences on which methods are tried and the held-out ones, both spread over the text `ids`.

    All are [sequences, length]; a single sequence is cut into two halves.
    """
    ids = ids if len(ids) > 1 else ids[:, : ids.shape[1] // 2 * 2].view(2, -1)
    judges = torch.arange(1, len(ids) + 1) % min(JUDGING, len(ids)) == 0
    most = max(1, TRIED_TOKENS // ids.shape[1])
    return evenly_spread(ids[~judges], most), evenly_spread(ids[judges], most)


def _compress_by(
    model: StreamedModel, options: MethodOptions, ratio: float, ids: Tensor, parts: PartStore, seed: int
) -> PartStore:
    """Return the store of parts after compressing the model by one method."""
    method = planner_of(options)
    measured = (
        measure_all(model, ids, seed=seed, tiled=method.tiled(options)) if Need.SENSITIVITIES in method.needs else {}
    )
    plan = method.plan(model.inventory, ratio, options, site_errors(measured))
    for _ in compress(model, plan, ids, parts, sensitivities=measured, seed=seed):
        pass
    return parts
