"""The most bits that a weight may keep, as a recipe says it."""

from dataclasses import dataclass
from typing import Literal

from modelpress.spec.inventory import Site

Precision = Literal["auto", 16, 8, 4]
"""The most bits that a weight inside the model may keep; `auto`: as many as pay."""

PLAIN_BITS: Precision = 16
"""Bits of a number that is not rounded."""


@dataclass(frozen=True)
class Limits:
    """The most bits that the weights of a model may keep.

    Attributes:
        weights: those of every matrix.
        embedding: those of the embedding and the output head; `auto`: as `weights`.
    """

    weights: Precision = "auto"
    embedding: Precision = "auto"

    def of(self, site: Site) -> Precision:
        """Return the most bits that the weights of a matrix may keep."""
        return self.weights if site.block is not None or self.embedding == "auto" else self.embedding
