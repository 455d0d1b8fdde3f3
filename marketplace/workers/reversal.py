"""The reversal worker: brings the sellers' money back, asks again for refunds, applies events that failed."""

import time
from collections.abc import Sequence
from datetime import timedelta

import structlog
from django.conf import settings

from marketplace import inbox
from marketplace.errors import StripeDenied
from marketplace.gateway.contract import (
    CreateRefundAnswer,
    Denied,
    NotFound,
    RefundCreated,
    RefundsListed,
    ReversalsListed,
    Reversed,
    ReverseTransferAnswer,
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
from marketplace.services import leases, outcomes, refunds, reversals
from marketplace.services.reversals import Claimed
from marketplace.workers.loop import Worker, elapsed_ms, identity

logger = structlog.get_logger(__name__)


class ReversalQueue:
    """Transfers in ``reversal_pending`` that are due."""

    name = "reversal"
    channel = REVERSING_CHANNEL

    def __init__(self, gateway: TransferGateway) -> None:
        self._gateway = gateway
        self._actor = identity("reversal worker")

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[Claimed]:
        return reversals.claim(batch_size=batch_size, lease=lease)

    def perform(self, claimed: Claimed) -> None:
        if not claimed.transfer.stripe_transfer_id:
            reversals.settle_missing_id(claimed, actor=self._actor)
            return
        started = time.monotonic()
        answer = self._ask(claimed)
        ANSWERS.labels(work=self.name, answer=type(answer).__name__).inc()
        logger.info(
            "reversal_answered",
            transfer=claimed.transfer.pk,
            stripe_transfer_id=claimed.transfer.stripe_transfer_id,
            operation_id=str(claimed.reversal.operation_id),
            generation=claimed.reversal.key_generation,
            attempt=claimed.transfer.retry_count + 1,
            answer=type(answer).__name__,
            request_id=answer.request_id,
            milliseconds=elapsed_ms(started),
        )
        reversals.settle(claimed, answer, actor=self._actor)
        if isinstance(answer, Denied):
            raise StripeDenied(answer.message)

    def _ask(self, claimed: Claimed) -> ReverseTransferAnswer:
        """Look where we must, and send where nothing was found. No transaction is open here."""
        if claimed.must_look:
            listed = self._gateway.list_reversals(claimed.transfer.stripe_transfer_id)
            if isinstance(listed, NotFound):
                # The list stands below the transfer: there is no such transfer.
                return listed
            if not isinstance(listed, ReversalsListed):
                return outcomes.of_look(listed)
            found = reversals.find(claimed, listed.reversals)
            if found is not None:
                return Reversed(reversal=found)
            if claimed.reversal.stripe_reversal_id:
                return Unknown(message=f"{claimed.reversal.stripe_reversal_id} is not in Stripe's list")
            claimed = reversals.begin_generation(claimed)
        return self._gateway.reverse_transfer(
            claimed.transfer.stripe_transfer_id,
            amount=claimed.reversal.amount,
            reason=claimed.reason,
            operation_id=claimed.reversal.operation_id,
            idempotency_key=claimed.reversal.idempotency_key,
        )

    def settle_unexpected(self, claimed: Claimed, exception: Exception) -> None:
        reversals.settle_unexpected(claimed, exception, actor=self._actor)

    def release(self, claimed: Claimed) -> None:
        leases.release(SellerTransfer, claimed.transfer.pk, claimed.transfer.lease_token)

    def seconds_until_due(self) -> float | None:
        return leases.seconds_until_due(SellerTransfer, due="status = 'reversal_pending'")


class RefundQueue:
    """Refunds that Stripe has not answered yet."""

    name = "refund"
    channel = REFUNDING_CHANNEL

    def __init__(self, gateway: TransferGateway) -> None:
        self._gateway = gateway
        self._actor = identity("refund worker")

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[Refund]:
        return refunds.claim(batch_size=batch_size, lease=lease)

    def perform(self, claimed: Refund) -> None:
        answer = self._ask(claimed)
        ANSWERS.labels(work=self.name, answer=type(answer).__name__).inc()
        logger.info(
            "refund_answered",
            refund=claimed.pk,
            operation_id=str(claimed.operation_id),
            attempt=claimed.retry_count + 1,
            answer=type(answer).__name__,
            request_id=answer.request_id,
        )
        refunds.settle(claimed, answer, actor=self._actor)
        if isinstance(answer, Denied):
            raise StripeDenied(answer.message)

    def _ask(self, claimed: Refund) -> CreateRefundAnswer:
        if refunds.must_look(claimed):
            listed = self._gateway.list_refunds(payment_intent=claimed.order.stripe_payment_intent_id)
            if not isinstance(listed, RefundsListed):
                return outcomes.of_look(listed)
            found = refunds.find(claimed, listed)
            if found is not None:
                return RefundCreated(refund=found)
            claimed = refunds.begin_generation(claimed)
        return refunds.ask(claimed, self._gateway)

    def settle_unexpected(self, claimed: Refund, exception: Exception) -> None:
        refunds.settle_unexpected(claimed, exception, actor=self._actor)

    def release(self, claimed: Refund) -> None:
        leases.release(Refund, claimed.pk, claimed.lease_token)

    def seconds_until_due(self) -> float | None:
        return leases.seconds_until_due(Refund, due="status = 'requested'")


class EventQueue:
    """Webhook events whose effect failed."""

    name = "event"
    channel = EVENTS_CHANNEL

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[WebhookEvent]:
        return inbox.claim(batch_size=batch_size, lease=lease)

    def perform(self, claimed: WebhookEvent) -> None:
        inbox.apply_again(claimed)

    def settle_unexpected(self, claimed: WebhookEvent, exception: Exception) -> None:
        """Applying keeps its own errors; one beyond that leaves the lease to run out."""

    def release(self, claimed: WebhookEvent) -> None:
        leases.release(WebhookEvent, claimed.pk, claimed.lease_token)

    def seconds_until_due(self) -> float | None:
        return leases.seconds_until_due(WebhookEvent, due="status = 'failed' AND next_retry_at IS NOT NULL")


def worker(gateway: TransferGateway, *, concurrency: int | None = None, batch_size: int | None = None) -> Worker:
    """The reversal worker as configured by ``REVERSAL_*``."""
    return Worker(
        [ReversalQueue(gateway), RefundQueue(gateway), EventQueue()],
        concurrency=concurrency or settings.REVERSAL_CONCURRENCY,
        batch_size=batch_size or settings.REVERSAL_BATCH_SIZE,
        lease=settings.REVERSAL_LEASE,
        check_interval=settings.REVERSAL_CHECK_INTERVAL,
    )
