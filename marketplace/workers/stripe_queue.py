"""What all queues share whose work is a call at Stripe: the breaker, the log lines, the settle that persists."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

import structlog
from django.conf import settings

from marketplace import correlation, throttle, tracing
from marketplace.errors import StripeDenied
from marketplace.gateway.contract import Denied, TransferGateway
from marketplace.metrics import ANSWERS, SETTLE_SECONDS
from marketplace.services import leases, outcomes
from marketplace.slots import CallSlots, Stopped
from marketplace.workers.loop import SETTLING_SECONDS, elapsed_ms, identity, persistently

logger = structlog.get_logger(__name__)

# At most, in one attempt: look for an earlier one, send, and on a refusal read the transfer and its reversals; or look,
# send, and ask whether Stripe is down.
CALLS_PER_ATTEMPT = 4
# For a thread that is slow to begin, and for all that is not waiting.
ATTEMPT_MARGIN = timedelta(seconds=10)


# A row may lie claimed for at least so long before it is begun.
SHORTEST_PATIENCE = timedelta(seconds=20)


def attempt() -> timedelta:
    """How long one piece of work may take: its calls with their timeouts and turns, and a settle that persists."""
    call = settings.STRIPE_CONNECT_TIMEOUT + settings.STRIPE_READ_TIMEOUT + throttle.LONGEST_WAIT
    length: timedelta = call * CALLS_PER_ATTEMPT + timedelta(seconds=SETTLING_SECONDS) + ATTEMPT_MARGIN
    return length


def shortest_lease() -> timedelta:
    """Rows whose lease would end during the attempt are given back: with a shorter one, all would be, for ever."""
    return attempt() + SHORTEST_PATIENCE


class Row(Protocol):
    """What is claimed."""

    @property
    def is_probe(self) -> bool: ...


R = TypeVar("R", bound=Row)
A = TypeVar("A")


class StripeQueue(ABC, Generic[R, A]):
    name: str
    channel: str
    due: leases.Due
    # The log's lines: Stripe answered, and its answer is written down.
    answered: str
    settled: str

    def __init__(self, gateway: TransferGateway, slots: CallSlots | None = None) -> None:
        self._gateway = gateway
        # Without a worker nothing bounds the calls.
        self._slots = slots or CallSlots(sys.maxsize)
        self._actor = identity(f"{self.name} worker")
        # What this process has last seen of the breaker, so that rows in hand are not sent to a Stripe that is down.
        self._is_breaker_open = False
        # Whether the probe in hand may show that the rows are at fault, not Stripe.
        self._doubts_outage = False

    @abstractmethod
    def _claim(self, *, batch_size: int, lease: timedelta, past_breaker: bool = False) -> Sequence[R]: ...

    @abstractmethod
    def _ask(self, claimed: R) -> A:
        """Look where we must, and send where nothing was found. No transaction is open here."""

    @abstractmethod
    def _settle(self, claimed: R, answer: A, *, stripe_is_down: bool) -> outcomes.Settled: ...

    @abstractmethod
    def _give_up_lease(self, claimed: R) -> None:
        """The row is as it was before the claim."""

    @abstractmethod
    def describe(self, claimed: R) -> dict[str, Any]:
        """For the log, with ``correlation_id``."""

    @abstractmethod
    def _traceparent(self, claimed: R) -> str:
        """Of the row that is worked on."""

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[R]:
        """Due rows; or, while the breaker is open, one row that may ask whether Stripe is back."""
        rows = self._claim(batch_size=batch_size, lease=lease)
        if rows:
            self._note_breaker(is_open=False)
        elif probe := throttle.take_probe(self.name, lease=attempt()):
            self._doubts_outage = probe.doubts
            rows = self._claim(batch_size=1, lease=lease, past_breaker=True)
            if not rows:
                throttle.give_probe_back(self.name)
        return rows

    def is_held_back(self, claimed: R) -> bool:
        return self._is_breaker_open and not claimed.is_probe

    def release(self, claimed: R) -> None:
        self._give_up_lease(claimed)
        if claimed.is_probe:
            throttle.give_probe_back(self.name)

    def perform(self, claimed: R) -> None:
        described = self.describe(claimed)
        with (
            correlation.bound(described[correlation.NAME]),
            tracing.span(self.name, parent=self._traceparent(claimed), **described),
        ):
            self._perform(claimed)

    def _perform(self, claimed: R) -> None:
        has_told = False
        try:
            has_told = self._attempt(claimed)
        except Stopped:
            self._give_up_lease(claimed)
        finally:
            if claimed.is_probe and not has_told:
                throttle.give_probe_back(self.name)

    def _attempt(self, claimed: R) -> bool:
        """Ask, and write the answer down. Whether it says of Stripe that it works, or that it does not."""
        started = time.monotonic()
        with self._slots.used():
            answer = self._ask(claimed)
        said = type(answer).__name__
        ANSWERS.labels(work=self.name, answer=said).inc()
        described = self.describe(claimed)
        tracing.note(answer=said)
        logger.info(
            self.answered,
            **described,
            answer=said,
            request_id=getattr(answer, "request_id", ""),
            milliseconds=elapsed_ms(started),
        )
        stripe_is_down = self._is_stripe_down(claimed, answer)
        if claimed.is_probe and self._doubts_outage and outcomes.is_outage(answer):
            self._let_rows_fail_if_stripe_answers()
        answered = time.monotonic()
        with tracing.span("settle"):
            settled = persistently(lambda: self._settle(claimed, answer, stripe_is_down=stripe_is_down))
            tracing.note(status=settled.status)
        SETTLE_SECONDS.labels(work=self.name).observe(time.monotonic() - answered)
        logger.debug(self.settled, **described, status=settled.status, milliseconds=elapsed_ms(answered))
        if claimed.is_probe:
            logger.warning("breaker_probed", work=self.name, answer=said)
        has_told = outcomes.is_outage(answer) or outcomes.shows_stripe_at_work(answer)
        if has_told:
            self._note_breaker(is_open=settled.is_breaker_open)
        if isinstance(answer, Denied):
            raise StripeDenied(answer.message)
        return has_told

    def _is_stripe_down(self, claimed: R, answer: A) -> bool:
        """Whether a question that has nothing to do with this row fails as well. Not asked where it is known."""
        if not outcomes.is_outage(answer) or claimed.is_probe or self._is_breaker_open:
            return False
        return outcomes.is_outage(self._gateway.retrieve_balance())

    def _let_rows_fail_if_stripe_answers(self) -> None:
        """Long since it opened, and in vain: where Stripe answers what concerns no row, these rows may fail by
        themselves. Each spends a retry again; should Stripe fail for everyone after all, it opens anew.
        """
        if outcomes.shows_stripe_at_work(self._gateway.retrieve_balance()):
            logger.warning("breaker_doubted", work=self.name)
            persistently(lambda: throttle.succeeded(self.name))

    def _note_breaker(self, *, is_open: bool) -> None:
        if self._is_breaker_open and not is_open:
            logger.warning("breaker_closed", work=self.name)
        self._is_breaker_open = is_open
