"""Facts that stay, and notifications that wake the workers."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.models import (
    EVENTS_CHANNEL,
    REFUNDING_CHANNEL,
    REVERSING_CHANNEL,
    SENDING_CHANNEL,
    Notice,
    SellerTransfer,
)
from marketplace.states import EventStatus, TransferStatus
from tests.factories import (
    DisputeFactory,
    RefundFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    WebhookEventFactory,
    order_with_transfers,
)
from tests.models.rows import as_stored

BY = {"reason": "because", "actor": "tester"}

# --- Facts stay -------------------------------------------------------------------------------------------------------

STAYS: dict[str, Any] = {
    "transfer_id_stays": (lambda: SellerTransferFactory(completed=True), "stripe_transfer_id", "tr_other"),
    "transfer_id_stays, emptied": (lambda: SellerTransferFactory(completed=True), "stripe_transfer_id", ""),
    "refund_id_stays": (lambda: RefundFactory(pending=True), "stripe_refund_id", "re_other"),
    "reversal_id_stays": (lambda: TransferReversalFactory(succeeded=True), "stripe_reversal_id", "trr_other"),
    "dispute_id_stays": (DisputeFactory, "stripe_dispute_id", "dp_other"),
    "amount that a person entered of a dispute": (
        lambda: DisputeFactory(needs_a_person=True, entered_amount=1, order_amount=1),
        "entered_amount",
        2,
    ),
    "amount of a transfer at Stripe": (lambda: SellerTransferFactory(completed=True), "amount", 4999),
    "amount of a transfer that may be at Stripe": (
        lambda: SellerTransferFactory(failed=True, in_doubt=True),
        "amount",
        4999,
    ),
    "amount of a refund": (RefundFactory, "amount", 4999),
    "amount of a reversal that was sent": (
        lambda: TransferReversalFactory(first_attempted_at=timezone.now()),
        "amount",
        4999,
    ),
    "statement line of a transfer": (SellerTransferFactory, "description", "Order 7: other"),
    "statement line of a reversal": (TransferReversalFactory, "description", "Order 7: other"),
}
MAY_CHANGE: dict[str, Any] = {
    "id of a transfer that had none": (
        lambda: SellerTransferFactory(reversal_pending=True, stripe_transfer_id=""),
        "stripe_transfer_id",
        "tr_found",
    ),
    "amount of a dispute, as Stripe has it": (DisputeFactory, "amount", 4999),
    "amount of a dispute that nobody entered": (lambda: DisputeFactory(needs_a_person=True), "entered_amount", 2),
    "id of a refund that had none": (RefundFactory, "stripe_refund_id", "re_found"),
    "id of a reversal that had none": (TransferReversalFactory, "stripe_reversal_id", "trr_found"),
    "amount of a transfer that was never sent": (SellerTransferFactory, "amount", 4999),
    "amount of a reversal that was never sent": (TransferReversalFactory, "amount", 4999),
    "the latest reversal": (lambda: SellerTransferFactory(reversed=True), "stripe_reversal_id", "trr_later"),
    "an id written again": (
        lambda: SellerTransferFactory(completed=True, stripe_transfer_id="tr_same"),
        "stripe_transfer_id",
        "tr_same",
    ),
}


@pytest.mark.django_db
@pytest.mark.parametrize("case", STAYS)
def test_stays(case: str) -> None:
    make, field, value = STAYS[case]
    row = make()
    before = as_stored(row)
    with pytest.raises(DatabaseError, match="Cannot update"), transaction.atomic():
        type(row)._default_manager.filter(pk=row.pk).update(**{field: value})
    assert as_stored(row) == before


@pytest.mark.django_db
@pytest.mark.parametrize("case", MAY_CHANGE)
def test_may_change(case: str) -> None:
    make, field, value = MAY_CHANGE[case]
    row = make()
    type(row)._default_manager.filter(pk=row.pk).update(**{field: value})
    assert as_stored(row)[field] == value


# --- Notifications ----------------------------------------------------------------------------------------------------

CHANNELS = [SENDING_CHANNEL, REVERSING_CHANNEL, REFUNDING_CHANNEL, EVENTS_CHANNEL]
END = "veza_tests_end"


class Ear:
    """What was notified since the last ``heard()``."""

    def __init__(self, listening: psycopg.Connection[Any]) -> None:
        self.listening = listening
        for channel in (*CHANNELS, END):
            listening.execute(f"LISTEN {channel}")

    def heard(self) -> list[str]:
        # Notifications come in the order of their commits: whatever was sent before this one is here before it.
        self.listening.execute(f"NOTIFY {END}")
        channels = []
        for notification in self.listening.notifies(timeout=10):
            if notification.channel == END:
                break
            channels.append(notification.channel)
        return channels


@pytest.fixture
def ear(transactional_db: None) -> Iterator[Ear]:
    described = connection.get_connection_params()
    address = {name: described[name] for name in ("host", "port", "dbname", "user", "password") if name in described}
    with psycopg.connect(**address, autocommit=True) as listening:
        yield Ear(listening)


def test_new_work_wakes_its_workers(ear: Ear) -> None:
    SellerTransferFactory()
    assert ear.heard() == [SENDING_CHANNEL]
    RefundFactory()
    assert ear.heard() == [REFUNDING_CHANNEL]
    WebhookEventFactory(failed=True)
    assert ear.heard() == [EVENTS_CHANNEL]
    SellerTransferFactory(reversal_pending=True, reversal=False)
    assert ear.heard() == [REVERSING_CHANNEL]


def test_rows_that_nobody_has_to_do_anything_about_wake_nobody(ear: Ear) -> None:
    SellerTransferFactory(completed=True)
    SellerTransferFactory(permanently_failed_sending=True)
    RefundFactory(pending=True)
    WebhookEventFactory()
    WebhookEventFactory(given_up=True)
    assert ear.heard() == []


def test_a_refund_over_many_sellers_wakes_workers_once(ear: Ear) -> None:
    order = order_with_transfers([1000, 2000, 3000])
    ear.heard()
    with transaction.atomic():
        for transfer in order.transfers.all():
            transfer.transition(TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=Now())
        assert ear.heard() == []
    assert ear.heard() == [REVERSING_CHANNEL]


@pytest.mark.django_db
def test_an_event_that_failed_before_is_told_of_when_it_is_given_up() -> None:
    row = WebhookEventFactory(failed=True)
    assert not Notice.objects.exists()
    row.change(**BY, next_retry_at=None)
    assert Notice.objects.get().event_id == row.pk


def test_a_changed_due_time_wakes_workers(ear: Ear) -> None:
    row = SellerTransferFactory(reversal_pending=True, reversal=False)
    ear.heard()
    row.change(**BY, next_retry_at=Now())
    assert ear.heard() == [REVERSING_CHANNEL]


def test_claiming_wakes_nobody_and_giving_back_does(ear: Ear) -> None:
    row = SellerTransferFactory(reversal_pending=True, reversal=False)
    ear.heard()
    row.change(**BY, lease_token=uuid4(), lease_expires_at=timezone.now())
    assert ear.heard() == []
    row.change(**BY, lease_token=None, lease_expires_at=None)
    assert ear.heard() == [REVERSING_CHANNEL]


def test_a_row_that_a_worker_holds_wakes_nobody_whatever_its_holder_writes(ear: Ear) -> None:
    held = {"lease_token": uuid4(), "lease_expires_at": timezone.now()}
    row = SellerTransferFactory(reversal_pending=True, reversal=False, **held)
    row.change(**BY, lease_expires_at=Now())
    row.change(**BY, next_retry_at=Now())
    row.change(**BY, lease_token=uuid4())
    assert ear.heard() == []


def test_other_columns_wake_nobody(ear: Ear) -> None:
    row = SellerTransferFactory(reversal_pending=True, reversal=False)
    ear.heard()
    row.change(**BY, last_error_code="unknown")
    SellerTransfer.objects.filter(pk=row.pk).update(retry_count=2)
    assert ear.heard() == []


def test_an_event_that_fails_wakes_workers(ear: Ear) -> None:
    row = WebhookEventFactory()
    ear.heard()
    row.transition(EventStatus.FAILED, **BY, next_retry_at=Now())
    assert ear.heard() == [EVENTS_CHANNEL]
