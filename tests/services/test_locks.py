"""Locks that hold each other up, between programs that each do right."""

import re
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.models.functions import Now
from django.utils import timezone

import marketplace
from marketplace.gateway import contract
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.services import (
    clawback,
    debts,
    funds,
    refund_records,
    reversal_claims,
    reversal_settling,
    seen_at_stripe,
)
from marketplace.states import TransferStatus
from tests.factories import (
    RefundFactory,
    SellerFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    order_with_transfers,
)
from tests.lines import wait
from tests.services.test_confirmation import PATIENCE, wait_until_blocked
from tests.services.test_refunds import NOON, facts


@pytest.mark.django_db(transaction=True)
def test_who_wrote_a_transfer_twice_commits_beside_a_refund_that_waits_for_it(unblocked_database: None) -> None:
    """PostgreSQL then looks at the order again as it commits, for the foreign key: a lock against that look would be
    waited for while its holder waits for the transfer.
    """
    order = order_with_transfers((5000, 3000))
    first, last = order.transfers.order_by("id")
    recorded: list[object] = []

    def refund() -> None:
        try:
            with transaction.atomic():
                recorded.append(refund_records.record(facts(order), actor="stripe:evt"))
        finally:
            connections.close_all()

    thread = threading.Thread(target=refund)
    with transaction.atomic():
        row = SellerTransfer.locked(last.pk)
        row.change(actor="a worker", reason="once")
        row.change(actor="a worker", reason="twice")
        thread.start()
        wait_until_blocked()
    thread.join(PATIENCE)
    assert len(recorded) == 1
    first.refresh_from_db()
    last.refresh_from_db()
    assert {first.status, last.status} == {TransferStatus.REVERSAL_PENDING}


def test_no_row_is_locked_against_looks_for_a_foreign_key() -> None:
    against = re.compile(r"FOR UPDATE|select_for_update\((?![^)]*no_key=True)")
    sources = Path(marketplace.__file__).parent.rglob("*.py")
    found = {path.name: against.findall(path.read_text()) for path in sources}
    assert {name: locks for name, locks in found.items() if locks} == {}
    assert against.findall("SELECT 1 FOR UPDATE; x.select_for_update(skip_locked=True)")
    assert len(found) > 50


@pytest.mark.django_db(transaction=True)
def test_who_nets_waits_for_a_newer_order_without_holding_an_older_one(unblocked_database: None) -> None:
    older, newer = (SellerTransferFactory(permanently_failed=True) for _ in range(2))
    locked: list[list[int]] = []

    def net() -> None:
        try:
            with transaction.atomic():
                locked.append(list(debts._locked([older.pk, newer.pk])))
        finally:
            connections.close_all()

    thread = threading.Thread(target=net)
    with transaction.atomic():
        SellerTransfer.locked(newer.pk)
        thread.start()
        wait_until_blocked()
        assert SellerTransfer.objects.select_for_update(no_key=True, nowait=True).get(pk=older.pk) == older
    thread.join(PATIENCE)
    assert locked == [[newer.pk, older.pk]]


@pytest.mark.django_db(transaction=True)
def test_of_one_order_they_are_locked_by_their_numbers(unblocked_database: None) -> None:
    several = list(order_with_transfers((5000, 3000)).transfers.order_by("id").values_list("pk", flat=True))
    with transaction.atomic():
        assert list(debts._locked(reversed(several))) == several


@pytest.mark.django_db(transaction=True)
def test_money_that_came_waits_for_who_holds_a_newer_order_without_holding_an_older_one(
    unblocked_database: None,
) -> None:
    """Who undoes a netting has the newer order's transfers, and then wants those that it was netted for."""
    seller = SellerFactory()
    older, newer = wait(seller, 1000, minutes=20), wait(seller, 2000, minutes=10)
    woken: list[int] = []

    def arrive() -> None:
        try:
            with transaction.atomic():
                woken.append(funds.arrived(seller, {"eur": 3000}, seen_at=timezone.now()))
        finally:
            connections.close_all()

    thread = threading.Thread(target=arrive)
    with transaction.atomic():
        SellerTransfer.locked(newer.pk)
        thread.start()
        wait_until_blocked()
        assert list(debts._locked([older.pk])) == [older.pk]
    thread.join(PATIENCE)
    assert woken == [2]


def is_made_way_for(first: SellerTransfer, last: SellerTransfer, act: Callable[[], Any]) -> None:
    """``act`` begins with the last transfer of an order while somebody has the first one and goes on to the last, as
    who nets debts of both does, who has no lock on their order.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    with transaction.atomic():
        assert list(debts._locked([first.pk])) == [first.pk]
        thread.start()
        wait_until_blocked()
        assert list(debts._locked([last.pk])) == [last.pk]
    thread.join(PATIENCE)
    assert errors == []


def first_and_last() -> tuple[SellerTransfer, SellerTransfer, TransferReversal]:
    """Of one order; the last one's reversal was sent, perhaps, and is not wanted any more: its refund failed."""
    order = order_with_transfers((5000, 3000))
    refund = RefundFactory(order=order, amount=order.amount, failed=True, succeeded_at=NOON)
    first, last = order.transfers.order_by("id")
    SellerTransfer.objects.filter(pk=last.pk).update(status=TransferStatus.REVERSAL_PENDING, next_retry_at=Now())
    owed = TransferReversalFactory(
        transfer=last, refund=refund, first_attempted_at=NOON, unwanted_amount=last.amount, amount=last.amount
    )
    return first, last, owed


@pytest.mark.django_db(transaction=True)
def test_a_reversal_seen_at_stripe_waits_for_an_earlier_transfer_of_its_order_without_holding_its_own(
    unblocked_database: None,
) -> None:
    first, last, owed = first_and_last()
    shown = contract.TransferFacts(
        stripe_transfer_id=last.stripe_transfer_id,
        amount=last.amount,
        amount_reversed=last.amount,
        currency=last.currency,
        operation_id=str(last.operation_id),
    )
    made = contract.ReversalFacts(
        stripe_reversal_id="trr_made",
        amount=owed.amount,
        currency=owed.currency,
        operation_id=str(owed.operation_id),
    )

    def hear() -> None:
        with transaction.atomic():
            seen_at_stripe.record(shown, [made], actor="stripe:evt")

    is_made_way_for(first, last, hear)
    last.refresh_from_db()
    assert last.status == TransferStatus.REVERSED
    assert last.given_back.get().amount == owed.amount


@pytest.mark.django_db(transaction=True)
def test_dropping_what_is_no_longer_owed_waits_for_an_earlier_transfer_of_its_order_without_holding_its_own(
    unblocked_database: None,
) -> None:
    first, last, _ = first_and_last()
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    is_made_way_for(first, last, lambda: clawback.settle(claimed, reversal_settling.NoLongerOwed(), actor="a worker"))
    last.refresh_from_db()
    assert last.status == TransferStatus.COMPLETED
