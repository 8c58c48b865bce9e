"""How many requests a team may make, and the headers that tell it.

Each API process counts by itself, in memory: a broker that hangs must not hold up requests.
"""

import math
from dataclasses import dataclass
from time import monotonic

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


@dataclass
class Window:
    """The requests of one team in a minute of the clock, and in the minute before it."""

    number: int
    before: int = 0
    now: int = 0

    def at(self, number: int) -> "Window":
        """Return the window of a minute that is not before this one."""
        if number == self.number:
            return self
        return Window(number, before=self.now if number == self.number + 1 else 0)


class RateLimits:
    """Counts the requests of each team in a sliding minute; `per_minute` None is no limit.

    What was requested in the clock's minute before counts for as much of it as still lies in the sliding one. The
    library `limits` does the same and starts a thread at nearly every request.
    """

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self.windows: dict[str, Window] = {}

    def take(self, team: str) -> Allowance | None:
        """Count a request of the team and return what is left; None where there is no limit."""
        if self.per_minute is None:
            return None
        number, passed = divmod(monotonic(), WINDOW_SECONDS)
        window = self.windows.get(team, Window(0)).at(int(number))
        self.windows[team] = window
        used = window.before * (1 - passed / WINDOW_SECONDS) + window.now
        granted = used + 1 <= self.per_minute
        window.now += granted
        left = max(math.floor(self.per_minute - used - granted), 0)
        return Allowance(self.per_minute, left, self.reset_seconds(window, passed), granted)

    def reset_seconds(self, window: Window, passed: float) -> int:
        """Return the seconds until there are more: one by one as the minute before goes by, or with the next one."""
        next_minute = WINDOW_SECONDS - passed
        share = WINDOW_SECONDS / window.before if window.before else next_minute
        return max(math.ceil(min(share, next_minute)), 1)
