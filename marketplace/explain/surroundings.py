"""What holds a transfer back beside its own row: workers, breaker, allowance, those before it, its seller's money."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Q

from marketplace import selectors
from marketplace.gateway.contract import InsufficientFunds
from marketplace.models import (
    BalanceWatch,
    CircuitBreaker,
    RequestAllowance,
    SellerTransfer,
    TransferReversal,
)
from marketplace.services import outcomes, reversal_claims, transfers
from marketplace.states import ReversalStatus, TransferStatus

# More are not counted: whoever waits behind a thousand waits.
MOST_COUNTED = 1000
# So long after Stripe's 429 its traces are still felt.
SLOW_FOR = timedelta(minutes=2)


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Where a transfer is worked on: sending or reversing."""

    work: str
    statuses: tuple[str, ...]
    # Settings: their prefix, the switch.
    prefix: str
    switch: str
    endpoint: str
    command: str


SENDING = Queue(
    work=transfers.WORK,
    statuses=(TransferStatus.PENDING, TransferStatus.FAILED),
    prefix="TRANSFER_RETRY",
    switch="TRANSFER_RETRY_ENABLED",
    endpoint="POST /v1/transfers",
    command="run_transfer_retry_worker",
)
REVERSING = Queue(
    work=reversal_claims.WORK,
    statuses=(TransferStatus.REVERSAL_PENDING,),
    prefix="REVERSAL",
    switch="REVERSAL_WORKER_ENABLED",
    endpoint="POST /v1/transfers/{id}/reversals",
    command="run_reversal_worker",
)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    now: datetime
    queue: Queue
    is_switched_on: bool
    living_workers: int
    # None where it is closed.
    breaker: CircuitBreaker | None
    # Stripe's last 429 to this endpoint, where it is felt still.
    slowed_at: datetime | None


def around(queue: Queue, *, now: datetime) -> Surroundings:
    slowed = RequestAllowance.objects.filter(endpoint=queue.endpoint, slowed_at__gt=now - SLOW_FOR)
    return Surroundings(
        now=now,
        queue=queue,
        is_switched_on=getattr(settings, queue.switch),
        living_workers=selectors.living_workers()[queue.work],
        breaker=CircuitBreaker.objects.filter(work=queue.work, opened_at__isnull=False).first(),
        slowed_at=slowed.values_list("slowed_at", flat=True).first(),
    )


def ahead(transfer: SellerTransfer, queue: Queue, *, now: datetime) -> int:
    """How many due rows are taken up before this one; ``MOST_COUNTED`` at most."""
    due = transfer.next_retry_at
    earlier = Q(next_retry_at__lt=due) | Q(next_retry_at=due, pk__lt=transfer.pk)
    is_free = Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=now)
    rows = SellerTransfer.objects.filter(earlier, is_free, status__in=queue.statuses)
    return rows.order_by("next_retry_at", "pk")[:MOST_COUNTED].count()


def watch_of(transfer: SellerTransfer) -> BalanceWatch | None:
    return BalanceWatch.objects.filter(seller_id=transfer.seller_id).first()


def before_in_line(transfer: SellerTransfer, owed: TransferReversal) -> int:
    """How many transfers of the same seller and currency wait for money for longer; ``MOST_COUNTED`` at most."""
    since = owed.waiting_for_funds_since
    rows = SellerTransfer.objects.filter(
        seller_id=transfer.seller_id,
        currency=transfer.currency,
        status=TransferStatus.REVERSAL_PENDING,
        last_error_code=outcomes.CODES[InsufficientFunds],
        reversals__status=ReversalStatus.PENDING,
        reversals__waiting_for_funds_since__lt=since,
    )
    return rows.exclude(pk=transfer.pk).order_by().values("pk").distinct()[:MOST_COUNTED].count()
