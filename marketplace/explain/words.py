"""Spans and moments in sentences: short, and exact enough to act by."""

from datetime import UTC, datetime, timedelta

UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def span(length: timedelta) -> str:
    """The two largest units: ``6 h``, ``1 h 5 min``, ``45 d``, ``0 s``."""
    left = max(round(length.total_seconds()), 0)
    parts: list[tuple[int, str]] = []
    for name, seconds in UNITS:
        number, left = divmod(left, seconds)
        if number or parts:
            parts.append((number, name))
    return " ".join(f"{number} {name}" for number, name in parts[:2] if number) or "0 s"


def moment(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
