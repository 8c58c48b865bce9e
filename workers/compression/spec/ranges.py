"""The ratios that a method reaches on a model, and how near to its target a result must come."""

from dataclasses import dataclass

from workers.compression.spec.errors import CompressionError

TOLERANCE = 0.005
"""How far the stored parameters may lie from the target, as a fraction of the target."""


class RatioOutOfRange(CompressionError):
    """The target lies outside the feasible range; the message says the range."""

    code = "ratio_out_of_range"


@dataclass(frozen=True)
class Range:
    """Ratios of stored parameters, before / after, that a method reaches on a model."""

    lowest: float
    highest: float

    def __contains__(self, ratio: float) -> bool:
        return self.lowest <= ratio <= self.highest

    @classmethod
    def around(cls, ratio: float) -> "Range":
        """Return the range of a method that has a single ratio on each model."""
        return cls(ratio * (1 - TOLERANCE), ratio * (1 + TOLERANCE))

    @classmethod
    def spanning(cls, *ranges: "Range") -> "Range":
        """Return the smallest range that holds all the given ones."""
        return cls(min(each.lowest for each in ranges), max(each.highest for each in ranges))

    def require(self, ratio: float, method: str) -> None:
        """Raise RatioOutOfRange, naming the `method` and the range, unless the range holds `ratio`."""
        if ratio not in self:
            raise RatioOutOfRange(
                f"{method} reaches ratios from {self.lowest:.3f} to {self.highest:.3f} on this model; "
                f"{ratio:g} was asked for"
            )
