"""What is no longer owed, or not all of it, beside rows without a ``tr_…``, refusals, and what others reversed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pgtrigger
import pytest

from marketplace.errors import StaleTransition
from marketplace.models import Order, TransferReversal
from marketplace.services import reversals, transfers
from marketplace.states import ReversalStatus
from marketplace.workers import reversal as reversal_worker
from tests.factories import order_with_transfers
from tests.services.conftest import Make, kept_at_stripe
from tests.services.test_clawback import fails, rows
from tests.services.test_disputes import record as record_dispute
from tests.services.test_refunds import record

LEASE = timedelta(minutes=5)
LIST = "GET /v1/transfers/{id}/reversals"


def named(order: Order, stripe_transfer_id: str) -> None:
    with pgtrigger.ignore("marketplace.SellerTransfer:transfer_id_stays"):
        order.transfers.update(stripe_transfer_id=stripe_transfer_id)


def work_once(queue: reversal_worker.ReversalQueue) -> None:
    """What is due now, and not what becomes due by that."""
    for claimed in queue.claim(batch_size=10, lease=LEASE):
        queue.perform(claimed)


# --- Rows without a tr_… ----------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("is_claimed", [False, True], ids=["not claimed", "claimed"])
def test_of_a_row_without_an_id_nothing_is_owed_once_its_debt_is_dropped(is_claimed: bool) -> None:
    """It stayed due without a reversal, and a worker then took it to owe the whole transfer."""
    order = order_with_transfers((3000,))
    named(order, "")
    record(order)
    claimed = reversals.claim(batch_size=1, lease=LEASE) if is_claimed else []
    fails(order)
    for each in claimed:
        with pytest.raises(StaleTransition):
            reversals.settle_missing_id(each, actor="reversal worker")
    assert rows(order) == [("completed", 3000, 0)]
    assert order.transfers.get().next_retry_at is None
    assert reversals.claim(batch_size=1, lease=LEASE) == []
    assert [each.status for each in TransferReversal.objects.all()] == [ReversalStatus.CANCELED]


@pytest.mark.parametrize("is_settled", [False, True], ids=["in a worker's hands", "with a person"])
def test_of_a_row_without_an_id_that_a_worker_took_up_a_part_is_given_back(
    sold: Make, simulator: Any, gateway: Any, work: Callable[[], None], is_settled: bool
) -> None:
    order = sold()
    transfer = order.transfers.get()
    named(order, "")
    record_dispute(order, amount=2000, withdrawn=2000)
    (claimed,) = reversals.claim(batch_size=1, lease=LEASE)
    if is_settled:
        reversals.settle_missing_id(claimed, actor="reversal worker")
    record_dispute(order, amount=2000, withdrawn=2000, reinstated=1000, after=1)
    if not is_settled:
        reversals.settle_missing_id(claimed, actor="reversal worker")
    now = order.transfers.get()
    assert (now.status, now.last_error_code) == ("permanently_failed", "missing_transfer_id")
    assert TransferReversal.objects.get().amount_open == 900
    facts = gateway.retrieve_transfer(transfer.stripe_transfer_id).transfer
    transfers.enter_transfer_id(transfer_id=transfer.pk, found=facts, actor="user:eva", reason="hers")
    transfers.retry(transfer_id=transfer.pk, actor="user:eva", reason="hers")
    work()
    assert kept_at_stripe(simulator, order) == [1800]


@pytest.mark.django_db
def test_of_a_row_without_an_id_that_a_worker_took_up_all_is_given_back_in_two_parts() -> None:
    order = order_with_transfers((3000,))
    named(order, "")
    record_dispute(order, amount=2000, withdrawn=2000)
    (claimed,) = reversals.claim(batch_size=1, lease=LEASE)
    reversals.settle_missing_id(claimed, actor="reversal worker")
    record_dispute(order, amount=2000, withdrawn=2000, reinstated=1000, after=1)
    record_dispute(order, "won", amount=2000, withdrawn=2000, reinstated=2000, after=2)
    assert rows(order) == [("completed", 3000, 0)]
    assert [each.status for each in TransferReversal.objects.all()] == [ReversalStatus.CANCELED]
