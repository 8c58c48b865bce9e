"""Telling a training that has diverged from one that is merely noisy."""

import math
from collections.abc import Iterable

_SMOOTHING = 0.9
_UNSETTLED, _DIVERGED = 1.5, 3.0
"""Multiples of the best loss."""

_FLOOR = 0.05
"""Nats below which the best loss does not count as lower: near zero every loss is a multiple of it."""


class Watch:
    """Follows the losses of a training, in nats, step by step, beginning with those of the steps that are done."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._smoothed = math.nan
        self._best = math.inf
        for loss in losses:
            self.diverged(loss)

    def diverged(self, loss: float) -> bool:
        """Whether this next loss is no number, or the smoothed loss has risen to a multiple of its best."""
        if not math.isfinite(loss):
            return True
        last = loss if math.isnan(self._smoothed) else self._smoothed
        self._smoothed = _SMOOTHING * last + (1 - _SMOOTHING) * loss
        self._best = min(self._best, self._smoothed)
        return self._risen() > _DIVERGED

    @property
    def settled(self) -> bool:
        """Whether the smoothed loss is near its best, so that what was reached is worth going back to."""
        return self._risen() <= _UNSETTLED

    def _risen(self) -> float:
        return self._smoothed / max(self._best, _FLOOR)
