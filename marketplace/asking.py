"""Asking Stripe for what a person waits for: once more where it gives no answer, and never in vain."""

import time
from collections.abc import Callable
from typing import TypeVar

from marketplace.errors import MarketplaceError, StripeDenied
from marketplace.gateway.contract import Denied, Failure, NotFound, Postponed, Refused

A = TypeVar("A")

# Asked so often, with so many seconds between.
TRIES = 5
PAUSE_SECONDS = 5.0


class StripeSaysNo(MarketplaceError):
    """Stripe does not tell what it was asked."""


class StripeHasNone(StripeSaysNo):
    """Stripe has nothing of that id."""


def ask(call: Callable[[], A | Failure]) -> A:
    """The answer that is no failure; no transaction may be open.

    Raises:
        StripeDenied: our key, or its permissions.
        StripeHasNone: there is no such object.
        StripeSaysNo: refused, or not answered by any of ``TRIES`` requests.

    """
    tried = 0
    while True:
        answer = call()
        if not isinstance(answer, Failure):
            return answer
        tried += 1
        _require_hope(answer, is_last=tried == TRIES)
        time.sleep(answer.seconds if isinstance(answer, Postponed) else PAUSE_SECONDS)


def _require_hope(answer: Failure, *, is_last: bool) -> None:
    match answer:
        case Denied():
            raise StripeDenied(answer.message, forbidden=answer.forbidden)
        case NotFound():
            raise StripeHasNone(answer.message)
        case Refused():
            raise StripeSaysNo(answer.message)
        case _ if is_last:
            raise StripeSaysNo(f"no answer to {TRIES} requests: {answer.message}")
