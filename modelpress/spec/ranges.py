"""The range of compression ratios that a method reaches on a model, and the tolerance of a result."""

from dataclasses import dataclass

from modelpress.spec.errors import CompressionError

TOLERANCE = 0.005
"""The largest difference of the stored parameters from the target, as a fraction of the target."""


class RatioOutOfRange(CompressionError):
    """The target ratio is outside the range that the method reaches; the message states the range."""

    code = "ratio_out_of_range"


@dataclass(frozen=True)
class Range:
    """The compression ratios, stored parameters before / after, that a method reaches on a model."""

    lowest: float
    highest: float

    def __contains__(self, ratio: float) -> bool:
        return self.lowest <= ratio <= self.highest

    @classmethod
    def around(cls, ratio: float) -> "Range":
        """Return the range of a method that has a single ratio on each model: `ratio` within TOLERANCE."""
        return cls(ratio * (1 - TOLERANCE), ratio * (1 + TOLERANCE))

    @classmethod
    def spanning(cls, *ranges: "Range") -> "Range":
        """Return the smallest range that includes all `ranges`."""
        return cls(min(each.lowest for each in ranges), max(each.highest for each in ranges))

    def require(self, ratio: float, method: str) -> None:
        """Raise RatioOutOfRange, with the method's name and the range, unless the range includes `ratio`."""
        if ratio not in self:
            raise RatioOutOfRange(
                f"{method} reaches ratios from {self.lowest:.3f} to {self.highest:.3f} on this model; "
                f"{ratio:g} was asked for"
            )
