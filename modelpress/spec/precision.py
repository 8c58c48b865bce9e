"""The most bits that a weight may keep, as a recipe says it."""

from typing import Literal

Precision = Literal["auto", 16, 8, 4]
"""The most bits that a weight inside the model may keep; `auto`: as many as pay."""

PLAIN_BITS: Precision = 16
"""Bits of a number that is not rounded."""
