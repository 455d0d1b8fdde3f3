"""The reversal worker: brings the sellers' money back, asks again for refunds, applies events that failed, looks
whether sellers have money again, goes on with bulk retries, counts what happened, and tells people of what needs
them.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings

from marketplace import inbox, throttle
from marketplace.errors import StripeDenied
from marketplace.gateway.contract import (
    REVERSE_ENDPOINT,
    CreateRefundAnswer,
    Denied,
    NotFound,
    RefundCreated,
    RefundsListed,
    ReversalsListed,
    Reversed,
    TransferGateway,
    Unknown,
)
from marketplace.metrics import ANSWERS
from marketplace.models import (
    EVENTS_CHANNEL,
    REFUNDING_CHANNEL,
    REVERSING_CHANNEL,
    Refund,
    SellerTransfer,
    WebhookEvent,
)
from marketplace.services import (
    clawback,
    leases,
    notices,
    outcomes,
    refund_attempts,
    reversal_claims,
    reversal_settling,
)
from marketplace.services.reversal_claims import Claimed
from marketplace.services.reversal_settling import NoLongerOwed, ReversalAnswer
from marketplace.slots import CallSlots
from marketplace.workers.balances import BalanceQueue
from marketplace.workers.bulk_retries import BulkRetryQueue
from marketplace.workers.figures import FigureQueue
from marketplace.workers.loop import Queue, Worker, persistently, threads_for
from marketplace.workers.notices import NoticeQueue
from marketplace.workers.stripe_queue import StripeQueue, attempt

logger = structlog.get_logger(__name__)


class ReversalQueue(StripeQueue[Claimed, ReversalAnswer]):
    """Transfers in ``reversal_pending`` that are due."""

    name = reversal_claims.WORK
    channel = REVERSING_CHANNEL
    due = reversal_claims.DUE
    answered = "reversal_answered"
    settled = "reversal_settled"

    def _claim(self, *, batch_size: int, lease: timedelta, past_breaker: bool = False) -> Sequence[Claimed]:
        is_alone = self._slots.are_all_free and not past_breaker
        turn = throttle.in_advance(self._gateway.gate, REVERSE_ENDPOINT) if is_alone else None
        return reversal_claims.claim(batch_size=batch_size, lease=lease, past_breaker=past_breaker, turn=turn)

    def _attempt(self, claimed: Claimed) -> bool:
        if claimed.transfer.stripe_transfer_id:
            return super()._attempt(claimed)
        reversal_settling.settle_missing_id(claimed, actor=self._actor)
        return False

    def _ask(self, claimed: Claimed) -> ReversalAnswer:
        if claimed.must_look:
            listed = self._gateway.list_reversals(claimed.transfer.stripe_transfer_id)
            if isinstance(listed, NotFound):
                # The list stands below the transfer: there is no such transfer.
                return listed
            if not isinstance(listed, ReversalsListed):
                return outcomes.of_look(listed)
            found = reversal_claims.find(claimed, listed.reversals)
            if found is not None:
                return Reversed(reversal=found)
            if claimed.reversal.stripe_reversal_id:
                message = f"{claimed.reversal.stripe_reversal_id} is not in Stripe's list"
                return Unknown(message=message, is_outage=False)
            if not claimed.reversal.unwanted_amount:
                first = claimed.reversal.first_attempted_at
                if too_early := outcomes.too_early_for_a_new_key(first, now=claimed.claimed_at):
                    return too_early
                claimed = reversal_claims.begin_generation(claimed)
            if claimed.reversal.unwanted_amount:
                return reversal_claims.too_early_to_drop(claimed) or NoLongerOwed()
        return self._gateway.reverse_transfer(
            claimed.transfer.stripe_transfer_id,
            amount=claimed.reversal.amount,
            reason=claimed.reason,
            description=claimed.reversal.description,
            operation_id=claimed.reversal.operation_id,
            idempotency_key=claimed.reversal.idempotency_key,
        )

    def _settle(self, claimed: Claimed, answer: ReversalAnswer, *, stripe_is_down: bool) -> outcomes.Settled:
        return clawback.settle(claimed, answer, actor=self._actor, stripe_is_down=stripe_is_down)

    def describe(self, claimed: Claimed) -> dict[str, Any]:
        return {
            "transfer": claimed.transfer.pk,
            "stripe_transfer_id": claimed.transfer.stripe_transfer_id,
            "reversal": claimed.reversal.pk,
            "operation_id": str(claimed.reversal.operation_id),
            "generation": claimed.reversal.key_generation,
            "attempt": claimed.transfer.retry_count + 1,
            "correlation_id": claimed.reversal.correlation_id,
        }

    def _traceparent(self, claimed: Claimed) -> str:
        return claimed.reversal.traceparent

    def settle_unexpected(self, claimed: Claimed, exception: Exception) -> None:
        reversal_settling.settle_unexpected(claimed, exception, actor=self._actor)

    def _give_up_lease(self, claimed: Claimed) -> None:
        leases.release(SellerTransfer, claimed.transfer.pk, claimed.transfer.lease_token)


class RefundQueue(StripeQueue[Refund, CreateRefundAnswer]):
    """Refunds that Stripe has not answered yet."""

    name = refund_attempts.WORK
    channel = REFUNDING_CHANNEL
    due = refund_attempts.DUE
    answered = "refund_answered"
    settled = "refund_settled"

    def _claim(self, *, batch_size: int, lease: timedelta, past_breaker: bool = False) -> Sequence[Refund]:
        return refund_attempts.claim(batch_size=batch_size, lease=lease, past_breaker=past_breaker)

    def _ask(self, claimed: Refund) -> CreateRefundAnswer:
        if refund_attempts.must_look(claimed):
            listed = self._gateway.list_refunds(payment_intent=claimed.order.stripe_payment_intent_id)
            if not isinstance(listed, RefundsListed):
                return outcomes.of_look(listed)
            found = refund_attempts.find(claimed, listed)
            if found is not None:
                return RefundCreated(refund=found)
            if too_early := outcomes.too_early_for_a_new_key(claimed.first_attempted_at, now=claimed.claimed_at):
                return too_early
            claimed = leases.begin_generation(claimed, actor="refund worker")
        return refund_attempts.ask(claimed, self._gateway)

    def _settle(self, claimed: Refund, answer: CreateRefundAnswer, *, stripe_is_down: bool) -> outcomes.Settled:
        return refund_attempts.settle(claimed, answer, actor=self._actor, stripe_is_down=stripe_is_down)

    def describe(self, claimed: Refund) -> dict[str, Any]:
        return {
            "refund": claimed.pk,
            "operation_id": str(claimed.operation_id),
            "generation": claimed.key_generation,
            "attempt": claimed.retry_count + 1,
            "correlation_id": claimed.correlation_id,
        }

    def _traceparent(self, claimed: Refund) -> str:
        return claimed.traceparent

    def settle_unexpected(self, claimed: Refund, exception: Exception) -> None:
        refund_attempts.settle_unexpected(claimed, exception, actor=self._actor)

    def _give_up_lease(self, claimed: Refund) -> None:
        leases.release(Refund, claimed.pk, claimed.lease_token)


class EventQueue:
    """Webhook events whose effect failed."""

    name = "event"
    channel = EVENTS_CHANNEL
    due = inbox.DUE

    def __init__(self, gateway: TransferGateway) -> None:
        self._gateway = gateway

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[WebhookEvent]:
        return inbox.claim(batch_size=batch_size, lease=lease)

    def is_held_back(self, claimed: WebhookEvent) -> bool:  # noqa: ARG002 - hardly any asks something of Stripe
        return False

    def perform(self, claimed: WebhookEvent) -> None:
        """Where the event does not say enough Stripe is asked here, before its transaction begins."""
        stripe_transfer_id = inbox.reversals_wanted(claimed)
        if not stripe_transfer_id:
            inbox.apply_again(claimed)
            return
        answer = self._gateway.list_reversals(stripe_transfer_id)
        ANSWERS.labels(work=self.name, answer=type(answer).__name__).inc()
        if isinstance(answer, ReversalsListed):
            persistently(lambda: inbox.apply_again(claimed, answer.reversals))
            return
        persistently(lambda: inbox.not_looked_up(claimed, answer))
        if isinstance(answer, Denied):
            raise StripeDenied(answer.message)

    def describe(self, claimed: WebhookEvent) -> dict[str, Any]:
        return {
            "event_id": claimed.stripe_event_id,
            "type": claimed.type,
            "attempt": claimed.retry_count + 1,
            "correlation_id": claimed.stripe_event_id,
        }

    def settle_unexpected(self, claimed: WebhookEvent, exception: Exception) -> None:
        """Applying keeps its own errors; one beyond that leaves the lease to run out."""

    def release(self, claimed: WebhookEvent) -> None:
        leases.release(WebhookEvent, claimed.pk, claimed.lease_token)


def worker(gateway: TransferGateway, *, concurrency: int | None = None, batch_size: int | None = None) -> Worker:
    """The reversal worker as configured by ``REVERSAL_*``."""
    concurrency = concurrency or settings.REVERSAL_CONCURRENCY
    slots = CallSlots(concurrency)
    # The threads that are more than the calls: so many may wait for who is not asked for reversals or refunds.
    spare = threads_for(concurrency) - concurrency
    queues: list[Queue] = [
        ReversalQueue(gateway, slots),
        RefundQueue(gateway, slots),
        EventQueue(gateway),
        BalanceQueue(gateway, most=spare),
        BulkRetryQueue(),
        FigureQueue(),
    ]
    if notices.is_on():
        queues.append(NoticeQueue(most_to_sellers=spare))
    return Worker(
        queues,
        name="reversal worker",
        concurrency=concurrency,
        slots=slots,
        batch_size=batch_size or settings.REVERSAL_BATCH_SIZE,
        lease=settings.REVERSAL_LEASE,
        attempt=attempt(),
        check_interval=settings.REVERSAL_CHECK_INTERVAL,
    )
