"""Locks that hold each other up, between programs that each do right."""

import re
import threading
from pathlib import Path

import pytest
from django.db import connections, transaction

import marketplace
from marketplace.models import SellerTransfer
from marketplace.services import refunds
from marketplace.states import TransferStatus
from tests.factories import order_with_transfers
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
