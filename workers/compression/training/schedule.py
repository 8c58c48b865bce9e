"""The learning rate over a training run."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """A linear warm-up over `warmup_ratio` of the steps, then a cosine that falls to 0.

    The warm-up may end within a step. That step takes the highest rate if `holds_peak`; otherwise it takes the
    cosine's value, which lies slightly below the highest since the cosine peaks a fraction of a step later.
    """

    warmup_ratio: float
    holds_peak: bool = True

    def factor(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, as a share of the highest; at least 0, at most 1."""
        warmup = self.warmup_ratio * steps
        if step + 1 < warmup:
            return (step + 1) / warmup
        past_peak = max(0.0, step - warmup) if self.holds_peak else step - warmup
        return (1 + math.cos(math.pi * past_peak / max(1.0, steps - warmup))) / 2
