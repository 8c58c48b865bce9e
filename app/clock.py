"""The database's clock, by which all times of jobs are kept: those of workers and of the API may differ."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Interval, cast, func, literal


def clock() -> ColumnElement[datetime]:
    """Return the present moment; unlike now() it does not stand still inside a transaction."""
    return func.clock_timestamp()


def seconds(count: float) -> ColumnElement[Any]:
    """Return an interval of that many seconds."""
    return cast(literal(f"{count} seconds"), Interval)
