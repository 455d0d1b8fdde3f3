"""The transfer retry worker: sends the sellers their shares, first and again."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings

from marketplace.gateway.contract import CreateTransferAnswer, TransferCreated, TransferGateway, TransfersListed
from marketplace.models import SENDING_CHANNEL, SellerTransfer
from marketplace.services import leases, outcomes, transfers
from marketplace.slots import CallSlots
from marketplace.workers.loop import Worker
from marketplace.workers.stripe_queue import StripeQueue, attempt


class TransferQueue(StripeQueue[SellerTransfer, CreateTransferAnswer]):
    """Transfers in ``pending`` or ``failed`` that are due."""

    name = transfers.WORK
    channel = SENDING_CHANNEL
    due = transfers.DUE
    answered = "transfer_answered"
    settled = "transfer_settled"

    def _claim(self, *, batch_size: int, lease: timedelta, past_breaker: bool = False) -> Sequence[SellerTransfer]:
        return transfers.claim(batch_size=batch_size, lease=lease, past_breaker=past_breaker)

    def _ask(self, claimed: SellerTransfer) -> CreateTransferAnswer:
        order = claimed.order
        if transfers.must_look(claimed):
            listed = self._gateway.list_transfers(transfer_group=order.transfer_group)
            if not isinstance(listed, TransfersListed):
                return outcomes.of_look(listed)
            found = transfers.find(claimed, listed.transfers)
            if found is not None:
                return TransferCreated(transfer=found)
            if too_early := outcomes.too_early_for_a_new_key(claimed.first_attempted_at, now=claimed.claimed_at):
                return too_early
            claimed = leases.begin_generation(claimed, actor="transfer worker")
        return self._gateway.create_transfer(
            amount=claimed.amount,
            currency=claimed.currency,
            destination=claimed.seller.stripe_account_id,
            # What is paid again comes from the platform's balance: of its charge all may be taken, or refunded.
            source_transaction="" if claimed.gives_back_of_id else order.stripe_charge_id,
            transfer_group=order.transfer_group,
            description=claimed.description,
            operation_id=claimed.operation_id,
            idempotency_key=claimed.idempotency_key,
        )

    def _settle(
        self, claimed: SellerTransfer, answer: CreateTransferAnswer, *, stripe_is_down: bool
    ) -> outcomes.Settled:
        return transfers.settle(claimed, answer, actor=self._actor, stripe_is_down=stripe_is_down)

    def describe(self, claimed: SellerTransfer) -> dict[str, Any]:
        return {
            "transfer": claimed.pk,
            "operation_id": str(claimed.operation_id),
            "generation": claimed.key_generation,
            "attempt": claimed.retry_count + 1,
            "correlation_id": claimed.correlation_id,
        }

    def _traceparent(self, claimed: SellerTransfer) -> str:
        return claimed.traceparent

    def settle_unexpected(self, claimed: SellerTransfer, exception: Exception) -> None:
        transfers.settle_unexpected(claimed, exception, actor=self._actor)

    def _give_up_lease(self, claimed: SellerTransfer) -> None:
        transfers.release(claimed, actor=self._actor)


def worker(gateway: TransferGateway, *, concurrency: int | None = None, batch_size: int | None = None) -> Worker:
    """The transfer retry worker as configured by ``TRANSFER_RETRY_*``; threads, batch and lease are the reversals'."""
    concurrency = concurrency or settings.REVERSAL_CONCURRENCY
    slots = CallSlots(concurrency)
    return Worker(
        [TransferQueue(gateway, slots)],
        name="transfer retry worker",
        concurrency=concurrency,
        slots=slots,
        batch_size=batch_size or settings.REVERSAL_BATCH_SIZE,
        lease=settings.REVERSAL_LEASE,
        attempt=attempt(),
        check_interval=settings.TRANSFER_RETRY_CHECK_INTERVAL,
    )
