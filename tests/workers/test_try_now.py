"""An operator has the next attempt made now, in place of later: only its time changes."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.errors import NotAllowedNow
from marketplace.models import SellerTransfer
from marketplace.services import transfers
from marketplace.states import TransferStatus
from tests.factories import SellerTransferFactory
from tests.workers.conftest import REVERSE

BY = {"actor": "user:ada", "reason": "the seller has topped up"}
LATER = timedelta(hours=6)

pytestmark = pytest.mark.django_db


def waiting(**traits: Any) -> SellerTransfer:
    return SellerTransferFactory(next_retry_at=timezone.now() + LATER, **traits)


@pytest.mark.parametrize("trait", [{}, {"failed": True}, {"reversal_pending": True}])
def test_it_is_due_and_nothing_else_changes(trait: dict[str, Any]) -> None:
    transfer = waiting(**trait, retry_count=3)
    before = SellerTransfer.objects.values().get(pk=transfer.pk)

    transfers.try_now(transfer_id=transfer.pk, **BY)

    after = SellerTransfer.objects.values().get(pk=transfer.pk)
    assert after["next_retry_at"] <= timezone.now()
    assert {name for name in after if after[name] != before[name]} == {"next_retry_at", "updated_at"}


def test_the_history_tells_who_and_why() -> None:
    transfer = waiting(failed=True)
    told = transfer.history.count()

    transfers.try_now(transfer_id=transfer.pk, **BY)

    newest = transfer.history.latest("pgh_id")
    assert transfer.history.count() == told + 1
    assert (newest.pgh_label, newest.status) == ("woken", "failed")
    assert newest.pgh_context == {**BY, "attempt": None}
    assert newest.next_retry_at <= timezone.now()
    assert newest.last_error_code == "unknown"


@pytest.mark.parametrize(
    "status", [s for s in TransferStatus.values if s not in {"pending", "failed", "reversal_pending"}]
)
def test_what_is_not_in_motion_is_refused(status: str) -> None:
    transfer = SellerTransferFactory(**{status: True})

    with pytest.raises(NotAllowedNow, match=f"transfer {transfer.pk} is {status}: only one that waits"):
        transfers.try_now(transfer_id=transfer.pk, **BY)

    assert not transfer.history.filter(pgh_label="woken").exists()


def test_what_is_due_already_is_refused() -> None:
    with pytest.raises(NotAllowedNow, match="is due already"):
        transfers.try_now(transfer_id=SellerTransferFactory(reversal_pending=True).pk, **BY)


def test_what_a_worker_holds_is_refused_until_its_lease_ends() -> None:
    transfer = waiting(reversal_pending=True)
    rows = SellerTransfer.objects.filter(pk=transfer.pk)
    rows.update(lease_token=transfer.operation_id, lease_expires_at=timezone.now() + LATER)
    with pytest.raises(NotAllowedNow, match="in a worker's hands"):
        transfers.try_now(transfer_id=transfer.pk, **BY)

    rows.update(lease_expires_at=timezone.now() - LATER)
    transfers.try_now(transfer_id=transfer.pk, **BY)


def test_of_two_clicks_one_is_refused() -> None:
    transfer = waiting(reversal_pending=True)
    transfers.try_now(transfer_id=transfer.pk, **BY)

    with pytest.raises(NotAllowedNow, match="is due already"):
        transfers.try_now(transfer_id=transfer.pk, **BY)

    assert transfer.history.filter(pgh_label="woken").count() == 1


def test_a_transfer_that_is_not_there() -> None:
    with pytest.raises(SellerTransfer.DoesNotExist):
        transfers.try_now(transfer_id=10**9, **BY)


def test_a_seller_who_topped_up_is_reversed_at_once(
    at_stripe: Callable[..., SellerTransfer], run_reversals: Callable[[], int], simulator: Any
) -> None:
    transfer = at_stripe()
    account = transfer.seller.stripe_account_id
    simulator.pay_out(account)
    assert run_reversals() == 1
    transfer.refresh_from_db()
    assert (transfer.last_error_code, transfer.retry_count) == ("insufficient_funds", 0)
    assert run_reversals() == 0
    simulator.add_funds(5000, account=account)

    transfers.try_now(transfer_id=transfer.pk, **BY)

    assert run_reversals() == 1
    transfer.refresh_from_db()
    assert transfer.status == "reversed"


def test_an_old_key_goes_on_resting(
    at_stripe: Callable[..., SellerTransfer], run_reversals: Callable[[], int], simulator: Any
) -> None:
    transfer = at_stripe()
    transfer.reversals.update(first_attempted_at=Now() - timedelta(hours=20, minutes=30))
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=timezone.now() + LATER)

    transfers.try_now(transfer_id=transfer.pk, **BY)

    assert run_reversals() == 1
    transfer.refresh_from_db()
    assert (transfer.status, transfer.last_error_code) == ("reversal_pending", "postponed")
    assert transfer.reversals.get().key_generation == 1
    assert simulator.requests.to(REVERSE) == []
