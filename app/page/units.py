"""Numbers and times as people read them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

NOTHING = "–"
MINUTE, HOUR, DAY = 60, 3600, 86400


def three_digits(number: float) -> str:
    """Return a number of at least 1 with about three digits."""
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def scaled(number: float, units: Sequence[str]) -> str:
    """Return a number in the largest of units, each a thousand times the one before, that leaves at least 1 of it."""
    steps = next((step for step in range(len(units)) if number / 1000**step < 999.5), len(units) - 1)
    return f"{three_digits(number / 1000**steps)} {units[steps]}"


def size(number: float | None) -> str:
    """Return a number of bytes, such as '76.9 MB'."""
    if number is None:
        return NOTHING
    return f"{number:.0f} B" if number < 999.5 else scaled(number / 1000, ("kB", "MB", "GB", "TB"))


def amount(number: float) -> str:
    """Return a large count, such as '135 M'."""
    return f"{number:.0f}" if number < 999.5 else scaled(number / 1000, ("k", "M", "B", "T"))


def ratio(number: float | None) -> str:
    """Return how many times, such as '3.5×'."""
    return NOTHING if number is None else f"{number:.3g}×"


def ratios(numbers: float | Sequence[float]) -> str:
    """Return one ratio or several, such as '2×, 3×'."""
    return ", ".join(map(ratio, numbers)) if isinstance(numbers, Sequence) else ratio(numbers)


def share(number: float | None) -> str:
    """Return a fraction, such as '83.0 %'."""
    return NOTHING if number is None else f"{number * 100:.1f} %"


def duration(seconds: float | None) -> str:
    """Return a duration for a waiting person, such as '40 s', '12 min' or '3 h 20 min'."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 1.5 * MINUTE:
        return f"{seconds:.0f} s"
    minutes = round(seconds / MINUTE)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def ago(at: datetime) -> str:
    """Return how long ago something was, such as '5 min ago'; a day, once it is more than a week ago."""
    passed = (datetime.now(UTC) - at).total_seconds()
    if passed < MINUTE:
        return "just now"
    if passed < HOUR:
        return f"{passed // MINUTE:.0f} min ago"
    if passed < 2 * DAY:
        return f"{passed // HOUR:.0f} h ago"
    return f"{passed // DAY:.0f} days ago" if passed < 7 * DAY else f"{at.astimezone(UTC):%Y-%m-%d}"


def moment(at: datetime) -> str:
    """Return a time to the second, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    each.__name__: each for each in (size, amount, ratio, ratios, share, duration, ago, moment)
}
