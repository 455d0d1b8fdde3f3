"""What stands still is told, each row once; what only waits is not."""

from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.models import Drift, Refund, SellerTransfer, WebhookEvent
from marketplace.reconciliation import stuck
from tests.factories import (
    DebtEntryFactory,
    RefundFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    WebhookEventFactory,
)
from tests.reconciliation.conftest import Reconcile, only, rewrite

pytestmark = pytest.mark.django_db
AGO = timedelta(hours=2)


def due_since(row: Any, ago: timedelta, **fields: Any) -> Any:
    type(row).objects.filter(pk=row.pk).update(next_retry_at=Now() - ago, **fields)
    return row


@pytest.mark.parametrize(
    "make",
    [
        SellerTransferFactory,
        lambda: SellerTransferFactory(failed=True),
        RefundFactory,
        lambda: WebhookEventFactory(failed=True),
    ],
)
def test_a_row_that_is_due_for_long_is_overdue(make: Any) -> None:
    row = due_since(make(), AGO)
    (found,) = stuck.findings()
    assert (found.kind, found.subject) == (Drift.OVERDUE, str(row))
    assert "due, and taken up by nobody, since " in found.detail


def test_a_transfer_that_owes_a_reversal_for_long_names_its_money(reconcile: Reconcile) -> None:
    row = due_since(SellerTransferFactory(reversal_pending=True), AGO)
    found = {each.kind: each for each in reconcile()}[Drift.OVERDUE]
    assert (found.amount, found.currency, found.stripe_id) == (5000, "eur", row.stripe_transfer_id)
    assert found.stripe_account_id == row.seller.stripe_account_id


def test_one_that_was_due_a_moment_ago_or_will_be_is_no_drift(reconcile: Reconcile) -> None:
    due_since(SellerTransferFactory(), timedelta(minutes=59))
    due_since(SellerTransferFactory(), -AGO)
    assert reconcile() == []


def test_a_row_whose_lease_ended_long_ago_is_told_as_that(reconcile: Reconcile) -> None:
    row = SellerTransferFactory()
    lease = {"lease_token": row.operation_id, "lease_expires_at": Now() - AGO}
    due_since(row, AGO, **lease)
    assert only(reconcile(), Drift.LEASE_OVER).subject == str(row)


def test_a_row_that_a_worker_holds_is_no_drift(reconcile: Reconcile) -> None:
    row = SellerTransferFactory()
    due_since(row, AGO, lease_token=row.operation_id, lease_expires_at=Now() + AGO)
    assert reconcile() == []


@pytest.mark.parametrize(
    "make", [lambda: SellerTransferFactory(permanently_failed_sending=True), lambda: WebhookEventFactory(given_up=True)]
)
def test_what_needs_a_person_is_told_with_its_code(make: Any) -> None:
    row = make()
    (found,) = stuck.findings()
    assert (found.kind, found.subject, found.remedy) == (Drift.NEEDS_A_PERSON, str(row), "")
    assert found.detail.startswith(f"{row.status}, waits for a person since {timezone.now():%Y-%m-%d}")
    assert found.detail.endswith(f": {row.last_error_code}")


def test_what_is_done_is_no_drift() -> None:
    SellerTransferFactory(completed=True)
    RefundFactory(succeeded=True)
    WebhookEventFactory(ignored=True)
    assert list(stuck.findings()) == []
    assert SellerTransfer.objects.exists()
    assert Refund.objects.exists()
    assert WebhookEvent.objects.exists()


def test_debts_that_do_not_add_up_are_told_in_money(reconcile: Reconcile) -> None:
    entry = DebtEntryFactory(amount=1000)
    rewrite(entry.reversal, amount_recovered=900)
    (found,) = [each for each in stuck.findings() if each.subject.startswith("debts of")]
    assert (found.kind, found.amount, found.currency) == (Drift.DEBTS, 100, "eur")
    assert found.detail == "4100 recorded, 4000 by the amounts and entries"


def test_debts_that_add_up_are_none(reconcile: Reconcile) -> None:
    TransferReversalFactory(
        failed=True, transfer=SellerTransferFactory(permanently_failed=True, reversal=False), amount=100
    )
    assert {each.kind for each in stuck.findings()} == {Drift.NEEDS_A_PERSON}
