"""What a failed attempt leaves in a row, and when the row is due again: the same for every kind of work."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import ExpressionWrapper, F, Value
from django.db.models.fields import DateTimeField
from django.db.models.functions import Now

from marketplace import throttle
from marketplace.backoff import RetryPolicy
from marketplace.gateway.contract import (
    Busy,
    Denied,
    Failure,
    InsufficientFunds,
    NotFound,
    Postponed,
    RateLimited,
    Refused,
    ServerError,
    Unknown,
)
from marketplace.models.lifecycle import Work

# Nothing ran at Stripe: another call holds the object or the key, or a limiter stood before it. Seconds are enough.
BUSY_DELAY = timedelta(seconds=5)
# Stripe forgets a key after 24 hours at the earliest. Past this age a key is used no more without looking.
KEY_REUSE_WINDOW = timedelta(hours=20)
# A request whose caller has given up may reach Stripe so much later: connections try again for minutes.
LONGEST_WAY = timedelta(hours=1)

CLEARED_ERROR: Mapping[str, Any] = {
    "last_error_code": "",
    "last_error_message": "",
    "last_error_request_id": "",
    "last_error_at": None,
}


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What an answer made of the row; and whether Stripe is taken to fail for everyone now."""

    status: str
    is_breaker_open: bool = False


CODES: Mapping[type[Any], str] = {
    NotFound: "not_found",
    InsufficientFunds: "insufficient_funds",
    Busy: "busy",
    RateLimited: "rate_limited",
    Postponed: "postponed",
    Denied: "denied",
    ServerError: "server_error",
    Unknown: "unknown",
}


def in_(delay: timedelta) -> "ExpressionWrapper[Any]":
    """That far from now, by the database's clock."""
    return ExpressionWrapper(Now() + Value(delay), output_field=DateTimeField())


def error(code: str, message: str, request_id: str = "") -> dict[str, Any]:
    return {
        "last_error_code": code[:100],
        # PostgreSQL's text cannot hold the NUL character.
        "last_error_message": message[:2000].replace("\x00", "\ufffd"),
        "last_error_request_id": request_id[:255],
        "last_error_at": Now(),
    }


def error_of(failure: Failure) -> dict[str, Any]:
    code = failure.code if isinstance(failure, Refused) else CODES[type(failure)]
    return error(code, failure.message, failure.request_id)


def of_look(failure: Failure) -> Failure:
    """What a failed look means for the send it was for: a no to the question is no no to what was sent before, and a
    500 to it is none that Stripe keeps under that one's key.
    """
    if isinstance(failure, NotFound | Refused | ServerError):
        message = f"looking failed: {failure.message}"
        is_outage = isinstance(failure, ServerError) and failure.is_outage
        return Unknown(message=message, request_id=failure.request_id, is_outage=is_outage)
    return failure


def too_early_for_a_new_key(first_attempted_at: datetime | None, *, now: datetime) -> Postponed | None:
    """A look sees nothing of a request that is on its way. So, once a key is too old to be used, the next one waits
    until whatever was sent under it has arrived: what left as late as a lease allows, and took the longest way.
    """
    age = now - first_attempted_at if first_attempted_at is not None else timedelta(0)
    wait = KEY_REUSE_WINDOW + settings.REVERSAL_LEASE + LONGEST_WAY - age
    if age <= KEY_REUSE_WINDOW or wait <= timedelta(0):
        return None
    message = "the last request under the old key may still be on its way to Stripe"
    return Postponed(message=message, seconds=wait.total_seconds())


def is_outage(answer: object) -> bool:
    """Whether Stripe was not able to answer, which may be so for this row alone, or for everyone."""
    return isinstance(answer, Unknown | ServerError) and answer.is_outage


def count_failure(work: str, answer: object, *, channel: str, whom: str, stripe_is_down: bool, is_probe: bool) -> bool:
    """Let the circuit breaker of this kind of work know of an outage; whether it is open now, so that nothing is to be
    spent. Part of the settling transaction, after the row's own lock.
    """
    if not isinstance(answer, Unknown | ServerError) or not answer.is_outage:
        return False
    error = f"{CODES[type(answer)]}: {answer.message}"
    return throttle.failed(work, channel=channel, whom=whom, everyone=stripe_is_down, is_probe=is_probe, error=error)


def shows_stripe_at_work(answer: object) -> bool:
    """Whatever else it says. A limiter or a lock stands before what may be broken, and says nothing of it."""
    return not is_outage(answer) and not isinstance(answer, Busy | RateLimited | Postponed)


def count_success(work: str, answer: object) -> None:
    """Last in the settling transaction: others wait for the breaker's row."""
    if shows_stripe_at_work(answer):
        throttle.succeeded(work)


def next_try(work: Work, policy: RetryPolicy) -> dict[str, Any]:
    """One retry spent: due again after the backoff for the count before this failure."""
    delay = policy.delay(work.retry_count, jitter=random.random())  # noqa: S311 - no secret
    return {"retry_count": F("retry_count") + 1, "next_retry_at": in_(delay)}
