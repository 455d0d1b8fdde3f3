"""A refund and the sending of the same transfer at once, in real threads: no seller keeps what was refunded."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections, transaction

from marketplace.models import SellerTransfer
from marketplace.services import refund_records
from marketplace.states import ReversalStatus, TransferStatus
from marketplace.workers import reversal, transfer_retry
from tests.services.test_refunds import facts
from tests.workers.conftest import drain
from tests.workers.test_transfer_queue import Make, made_for

LEASE = timedelta(minutes=5)
PATIENCE = 30
# Of an order of 10,000, whose one seller gets 5,000.
WHOLE, HALF = 10_000, 5000

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("unblocked_database")]


def in_thread(act: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        try:
            act()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def refund(transfer: SellerTransfer, amount: int) -> None:
    with transaction.atomic():
        refund_records.record(facts(transfer.order, amount=amount), actor="stripe:evt")


class Meanwhile:
    """The gateway, with a refund in another thread before the send arrives at Stripe, or after it has."""

    def __init__(self, gateway: Any, act: Callable[[], None], *, first: bool) -> None:
        self._gateway, self._act, self._first = gateway, act, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gateway, name)

    def create_transfer(self, **sent: Any) -> Any:
        if self._first:
            in_thread(self._act).join(PATIENCE)
        answer = self._gateway.create_transfer(**sent)
        if not self._first:
            in_thread(self._act).join(PATIENCE)
        return answer


def kept(simulator: Any, transfer: SellerTransfer) -> int:
    """What the seller has of it at Stripe, in minor units."""
    return sum(made["amount"] - made["amount_reversed"] for made in made_for(simulator, transfer))


@pytest.mark.parametrize(("amount", "left"), [(WHOLE, 0), (HALF, 2500)])
def test_a_worker_does_not_take_up_what_a_refund_holds(
    amount: int, left: int, payable: Make, gateway: Any, simulator: Any
) -> None:
    transfer = payable()
    queue = transfer_retry.TransferQueue(gateway)
    claimed: list[Any] = []
    with transaction.atomic():
        refund_records.record(facts(transfer.order, amount=amount), actor="stripe:evt")
        in_thread(lambda: claimed.extend(queue.claim(batch_size=1, lease=LEASE))).join(PATIENCE)
    assert claimed == []
    drain(queue)
    transfer.refresh_from_db()
    assert kept(simulator, transfer) == left
    assert transfer.status == (TransferStatus.COMPLETED if left else TransferStatus.CANCELED)
    assert not transfer.reversals.exists()


@pytest.mark.parametrize("first", [True, False], ids=["before it arrived", "after Stripe made it"])
@pytest.mark.parametrize(("amount", "left"), [(WHOLE, 0), (HALF, 2500)])
def test_a_refund_during_the_send_waits_for_its_outcome_and_is_reversed(
    amount: int, left: int, first: bool, payable: Make, gateway: Any, simulator: Any
) -> None:
    transfer = payable()
    seen: list[tuple[str, int]] = []

    def refund_it() -> None:
        refund(transfer, amount)
        row = SellerTransfer.objects.get(pk=transfer.pk)
        seen.append((row.status, row.reversals.get(status=ReversalStatus.PENDING).amount))

    drain(transfer_retry.TransferQueue(Meanwhile(gateway, refund_it, first=first)))  # type: ignore[arg-type]
    assert seen == [("pending", 5000 - left)]
    transfer.refresh_from_db()
    assert transfer.status == TransferStatus.REVERSAL_PENDING
    drain(reversal.ReversalQueue(gateway))
    assert kept(simulator, transfer) == left


@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "error_500", "rate_limited"])
def test_a_refund_during_a_send_without_an_answer_takes_all_back_in_the_end(
    fault: str, payable: Make, gateway: Any, simulator: Any
) -> None:
    transfer = payable()
    simulator.faults.add(fault, endpoint="POST /v1/transfers", times=1)
    drain(transfer_retry.TransferQueue(Meanwhile(gateway, lambda: refund(transfer, WHOLE), first=True)))  # type: ignore[arg-type]
    SellerTransfer.objects.filter(pk=transfer.pk).exclude(status="canceled").update(next_retry_at="2026-01-01T00:00Z")
    drain(transfer_retry.TransferQueue(gateway))
    drain(reversal.ReversalQueue(gateway))
    transfer.refresh_from_db()
    assert kept(simulator, transfer) == 0
    assert len(made_for(simulator, transfer)) <= 1
    assert transfer.status in {TransferStatus.REVERSED, TransferStatus.CANCELED}


@pytest.mark.parametrize(("amount", "left"), [(WHOLE, 0), (HALF, 2500)])
def test_whoever_is_first_the_seller_keeps_what_was_not_refunded(
    amount: int, left: int, payable: Make, gateway: Any, simulator: Any
) -> None:
    for _ in range(5):
        transfer = payable()
        now = threading.Barrier(2)

        def send(now: threading.Barrier = now) -> None:
            now.wait(PATIENCE)
            drain(transfer_retry.TransferQueue(gateway))

        def refund_it(now: threading.Barrier = now, transfer: SellerTransfer = transfer) -> None:
            now.wait(PATIENCE)
            of_refund = facts(transfer.order, amount=amount, stripe_refund_id=f"re_{transfer.pk}")
            with transaction.atomic():
                refund_records.record(of_refund, actor="stripe:evt")

        for thread in (in_thread(send), in_thread(refund_it)):
            thread.join(PATIENCE)
        drain(transfer_retry.TransferQueue(gateway))
        drain(reversal.ReversalQueue(gateway))
        transfer.refresh_from_db()
        assert kept(simulator, transfer) == left
        assert transfer.amount_kept_back + transfer.amount_reversed == (
            5000 - left if transfer.status != TransferStatus.CANCELED else 0
        )
