"""Locks that hold each other up, between programs that each do right."""

import re
import threading
from pathlib import Path

import pytest
from django.db import connections, transaction
from django.utils import timezone

import marketplace
from marketplace.models import SellerTransfer
from marketplace.services import debts, funds, refunds
from marketplace.states import TransferStatus
from tests.factories import SellerFactory, SellerTransferFactory, order_with_transfers
from tests.lines import wait
from tests.services.test_confirmation import PATIENCE, wait_until_blocked
from tests.services.test_refunds import facts


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
                recorded.append(refunds.record(facts(order), actor="stripe:evt"))
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
