"""A time in the past, as commands take it from their flags: how long ago, or a moment."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone
from django.utils.dateparse import parse_datetime

from veza.env import DURATION_ACCEPTED, parse_duration

ACCEPTED = f"{DURATION_ACCEPTED}, or a time such as 2026-11-20T08:30Z"


@dataclass(frozen=True, kw_only=True)
class Moment:
    at: datetime
    # As it was given.
    text: str


def moment(text: str) -> Moment:
    """Raises ``ArgumentTypeError`` for what is no time, or lies ahead."""
    now = timezone.now()
    try:
        at = now - parse_duration(text)
    except ValueError:
        at = _moment(text)
    if at > now:
        raise ArgumentTypeError(f"{text!r} is not valid: it lies in the future")
    return Moment(at=at, text=text)


def _moment(text: str) -> datetime:
    try:
        parsed = parse_datetime(text)
        if parsed is not None:
            return parsed if timezone.is_aware(parsed) else timezone.make_aware(parsed)
    except (ValueError, OverflowError):
        pass
    raise ArgumentTypeError(f"{text!r} is not valid: expected {ACCEPTED}")
