"""Sellers' lines: transfers whose reversal Stripe refused because the balance was too small."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db.models.functions import Now
from django.utils import timezone

from marketplace.models import BalanceWatch, Seller, SellerTransfer
from tests.factories import SellerTransferFactory

BALANCE = "GET /v1/balance"


def wait(seller: Seller, amount: int, *, minutes: int = 60, currency: str = "eur", **fields: Any) -> SellerTransfer:
    """A transfer that has waited for so many minutes, and is due again in hours."""
    transfer = SellerTransferFactory(
        seller=seller,
        amount=amount,
        currency=currency,
        reversal_pending=True,
        **{
            "last_error_code": "insufficient_funds",
            "last_error_at": timezone.now(),
            "next_retry_at": timezone.now() + timedelta(hours=6),
            **fields,
        },
    )
    since = timezone.now() - timedelta(minutes=minutes)
    transfer.reversals.update(waiting_for_funds_since=since, look_first=True, first_attempted_at=since)
    return transfer


def is_due(transfer: SellerTransfer) -> bool:
    return SellerTransfer.objects.filter(pk=transfer.pk, next_retry_at__lte=Now()).exists()


def due(transfers: Iterable[SellerTransfer]) -> list[bool]:
    return [is_due(transfer) for transfer in transfers]


def check_is_due(seller: Seller) -> None:
    """As though the watch's time had come."""
    assert BalanceWatch.objects.filter(seller=seller, next_retry_at__isnull=False).update(next_retry_at=Now()) == 1


def seconds_until_check(seller: Seller) -> float | None:
    due_at = BalanceWatch.objects.get(seller=seller).next_retry_at
    return None if due_at is None else (due_at - timezone.now()).total_seconds()
