"""How many requests a team may make, and the headers that tell it.

Each API process counts by itself, in memory: a broker that hangs must not hold up requests.
"""

import math
from dataclasses import dataclass
from time import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from app.errors import TooManyRequests

WINDOW_SECONDS = 60


@dataclass(frozen=True)
class Allowance:
    """The requests that a team may still make, and whether the present one was allowed."""

    limit: int
    left: int
    reset_seconds: int
    granted: bool

    @property
    def headers(self) -> dict[str, str]:
        """Return the header fields of draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Policy": f'"team";q={self.limit};w={WINDOW_SECONDS}',
            "RateLimit": f'"team";r={self.left};t={self.reset_seconds}',
        }

    def check(self) -> None:
        """Raise TooManyRequests where the request was beyond the limit."""
        if not self.granted:
            raise TooManyRequests(
                f"the team may make {self.limit} requests a minute; go on in {self.reset_seconds} seconds",
                self.reset_seconds,
            )


class RateLimits:
    """Counts the requests of each team in a sliding minute; `per_minute` None is no limit."""

    def __init__(self, per_minute: int | None) -> None:
        self.item = None if per_minute is None else RateLimitItemPerMinute(per_minute)
        self.counter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def take(self, team: str) -> Allowance | None:
        """Count a request of the team and return what is left; None where there is no limit."""
        if self.item is None:
            return None
        granted = self.counter.hit(self.item, team)
        window = self.counter.get_window_stats(self.item, team)
        return Allowance(self.item.amount, window.remaining, max(math.ceil(window.reset_time - time()), 1), granted)
