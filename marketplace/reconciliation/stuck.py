"""What stands still, and what does not add up among our own rows: nobody at Stripe is asked."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db.models import F, Q
from django.db.models.functions import Now

from marketplace import selectors
from marketplace.models import Dispute, Drift, ReconciliationFinding, Refund, SellerTransfer, WebhookEvent
from marketplace.states import EventStatus, RefundStatus, TransferStatus

# A queue that nobody has touched for so long, or a worker that holds a row for so long after its lease, is not busy.
LONG = timedelta(hours=1)
STRIPE_IDS = ("stripe_transfer_id", "stripe_refund_id", "stripe_dispute_id")
WAITING: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (SellerTransfer, (TransferStatus.PENDING, TransferStatus.FAILED, TransferStatus.REVERSAL_PENDING)),
    (Refund, (RefundStatus.REQUESTED,)),
    (WebhookEvent, (EventStatus.FAILED,)),
)


def findings() -> Iterator[ReconciliationFinding]:
    """Not saved. Each row once: as one whose lease is over, as overdue, or as one that needs a person."""
    for model, statuses in WAITING:
        is_free = Q(lease_expires_at=None) | Q(lease_expires_at__lte=Now())
        due = model.objects.filter(status__in=statuses, next_retry_at__lte=Now() - LONG).filter(is_free)
        is_held = Q(lease_expires_at__lte=Now() - LONG)
        held = "held by a worker whose lease ended"
        yield from _each(due.filter(is_held), Drift.LEASE_OVER, held, F("lease_expires_at"))
        yield from _each(due.exclude(is_held), Drift.OVERDUE, "due, and taken up by nobody,", F("next_retry_at"))
    for model, status in ((SellerTransfer, TransferStatus.PERMANENTLY_FAILED), (WebhookEvent, EventStatus.FAILED)):
        given_up = model.objects.filter(status=status, next_retry_at=None)
        yield from _each(given_up, Drift.NEEDS_A_PERSON, "waits for a person", F("updated_at"))
    undecided = Dispute.objects.exclude(last_error_code="")
    yield from _each(undecided, Drift.NEEDS_A_PERSON, "waits for a person", F("updated_at"))
    yield from _debts()


def _each(rows: Any, kind: Drift, what: str, since: F) -> Iterator[ReconciliationFinding]:
    for row in rows.annotate(stuck_since=since).order_by("pk").iterator():
        code = f": {row.last_error_code}" if row.last_error_code else ""
        is_transfer = isinstance(row, SellerTransfer)
        yield ReconciliationFinding(
            kind=kind,
            subject=str(row),
            stripe_id=next((getattr(row, name) for name in STRIPE_IDS if hasattr(row, name)), ""),
            stripe_account_id=row.seller.stripe_account_id if is_transfer else "",
            amount=getattr(row, "amount", None),
            currency=getattr(row, "currency", ""),
            detail=f"{row.status}, {what} since {row.stuck_since:%Y-%m-%d %H:%M:%S} UTC{code}",
        )


def _debts() -> Iterator[ReconciliationFinding]:
    for drift in selectors.debt_drift():
        yield ReconciliationFinding(
            kind=Drift.DEBTS,
            subject=drift.what,
            amount=abs(drift.recorded - drift.expected),
            currency=drift.currency,
            detail=f"{drift.recorded} recorded, {drift.expected} by the amounts and entries",
        )
