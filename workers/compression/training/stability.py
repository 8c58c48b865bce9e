"""Tell a training run that has diverged from one that is merely noisy."""

import math
from collections.abc import Iterable

_SMOOTHING = 0.9
"""Weight of the past in the exponential moving average of the loss."""

_FLOOR = 0.05
"""A lowest loss below this counts as this: near zero, noise is a large multiple of any loss."""


class DivergenceMonitor:
    """Follows the smoothed loss of a run, beginning with the losses of the steps that are done.

    The run has diverged once the smoothed loss is more than `ratio` times its lowest value.
    """

    def __init__(self, losses: Iterable[float] = (), *, ratio: float = 3.0) -> None:
        self._ratio = ratio
        self._smoothed = math.nan
        self._lowest = math.inf
        for loss in losses:
            self.diverged(loss)

    def diverged(self, loss: float) -> bool:
        """Take in the loss of the next step, and return whether the run has diverged or the loss is not finite."""
        if not math.isfinite(loss):
            return True
        last = loss if math.isnan(self._smoothed) else self._smoothed
        self._smoothed = _SMOOTHING * last + (1 - _SMOOTHING) * loss
        self._lowest = min(self._lowest, self._smoothed)
        return self._risen() > self._ratio

    @property
    def settled(self) -> bool:
        """Whether the smoothed loss is at most half as high as one that counts as diverged.

        Only a checkpoint of a settled run is worth going back to.
        """
        return self._risen() <= self._ratio / 2

    def _risen(self) -> float:
        return self._smoothed / max(self._lowest, _FLOOR)
