"""Numbers as tables show them."""


def digits(value: float) -> str:
    """Return three significant digits, or a whole number from 100 on: '1.40', '12.5', '143,000'."""
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{places}f}"


def optional(value: float | None, form: str) -> str:
    """Return the value in a format, or nothing where there is none."""
    return "" if value is None else format(value, form)


def duration(seconds: float | None) -> str:
    """Return '3 min 48 s', '38 s', or nothing where there is none."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
