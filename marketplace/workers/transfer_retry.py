"""The transfer retry worker: sends the sellers their shares, first and again."""

import time
from collections.abc import Sequence
from datetime import timedelta

import structlog
from django.conf import settings

from marketplace.errors import StripeDenied
from marketplace.gateway.contract import (
    CreateTransferAnswer,
    Denied,
    TransferCreated,
    TransferGateway,
    TransfersListed,
)
from marketplace.metrics import ANSWERS
from marketplace.models import SENDING_CHANNEL, SellerTransfer
from marketplace.services import leases, outcomes, transfers
from marketplace.workers.loop import Worker, elapsed_ms, identity

logger = structlog.get_logger(__name__)


class TransferQueue:
    """Transfers in ``pending`` or ``failed`` that are due."""

    name = "transfer"
    channel = SENDING_CHANNEL

    def __init__(self, gateway: TransferGateway) -> None:
        self._gateway = gateway
        self._actor = identity("transfer worker")

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[SellerTransfer]:
        return transfers.claim(batch_size=batch_size, lease=lease)

    def perform(self, claimed: SellerTransfer) -> None:
        started = time.monotonic()
        answer = self._ask(claimed)
        ANSWERS.labels(work=self.name, answer=type(answer).__name__).inc()
        logger.info(
            "transfer_answered",
            transfer=claimed.pk,
            operation_id=str(claimed.operation_id),
            generation=claimed.key_generation,
            attempt=claimed.retry_count + 1,
            answer=type(answer).__name__,
            request_id=answer.request_id,
            milliseconds=elapsed_ms(started),
        )
        transfers.settle(claimed, answer, actor=self._actor)
        if isinstance(answer, Denied):
            raise StripeDenied(answer.message)

    def _ask(self, claimed: SellerTransfer) -> CreateTransferAnswer:
        """Look where we must, and send where nothing was found. No transaction is open here."""
        order = claimed.order
        if transfers.must_look(claimed):
            listed = self._gateway.list_transfers(transfer_group=order.transfer_group)
            if not isinstance(listed, TransfersListed):
                return outcomes.of_look(listed)
            found = transfers.find(claimed, listed.transfers)
            if found is not None:
                return TransferCreated(transfer=found)
            claimed = transfers.begin_generation(claimed)
        return self._gateway.create_transfer(
            amount=claimed.amount,
            currency=claimed.currency,
            destination=claimed.seller.stripe_account_id,
            source_transaction=order.stripe_charge_id,
            transfer_group=order.transfer_group,
            operation_id=claimed.operation_id,
            idempotency_key=claimed.idempotency_key,
        )

    def settle_unexpected(self, claimed: SellerTransfer, exception: Exception) -> None:
        transfers.settle_unexpected(claimed, exception, actor=self._actor)

    def release(self, claimed: SellerTransfer) -> None:
        transfers.release(claimed, actor=self._actor)

    def seconds_until_due(self) -> float | None:
        return leases.seconds_until_due(SellerTransfer, due="status IN ('pending', 'failed')")


def worker(gateway: TransferGateway, *, concurrency: int | None = None, batch_size: int | None = None) -> Worker:
    """The transfer retry worker as configured by ``TRANSFER_RETRY_*``; threads, batch and lease are the reversals'."""
    return Worker(
        [TransferQueue(gateway)],
        concurrency=concurrency or settings.REVERSAL_CONCURRENCY,
        batch_size=batch_size or settings.REVERSAL_BATCH_SIZE,
        lease=settings.REVERSAL_LEASE,
        check_interval=settings.TRANSFER_RETRY_CHECK_INTERVAL,
    )
