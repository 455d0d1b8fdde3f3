"""A dispute that is won, or lost after all, while what it took is on its way, waits, or became a debt."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from marketplace import selectors
from marketplace.gateway.contract import Refused
from marketplace.models import Order, SellerTransfer, TransferReversal
from marketplace.services import debts, give_backs, reversal_claims, reversal_settling, transfers
from marketplace.states import ReversalStatus, TransferStatus
from marketplace.workers import reversal as reversal_worker
from tests.services.conftest import REVERSE, Make, kept_at_stripe
from tests.services.test_disputes import record
from tests.services.test_refunds import record as record_refund
from tests.workers.conftest import drain

pytestmark = pytest.mark.django_db
Work = Callable[[], None]
# The one seller's share of an order of 3000.
SHARE = 2700


def accounts(order: Order) -> list[str]:
    return [each.seller.stripe_account_id for each in order.transfers.select_related("seller").order_by("id")]


def lose_after_all(order: Order, *, after: int) -> None:
    """Stripe takes again what it had given back."""
    record(order, "lost", after=after, withdrawn=6000, reinstated=3000)


def win(order: Order, *, after: int = 5, **told: Any) -> None:
    record(order, "won", after=after, **{"withdrawn": 3000, "reinstated": 3000, **told})


@pytest.mark.parametrize("ends", ["given up", "done"])
@pytest.mark.parametrize("heard", ["before the win", "after the win"])
def test_while_the_reversal_is_pending_at_stripe(
    sold: Make, simulator: Any, work: Work, gateway: Any, ends: str, heard: str
) -> None:
    simulator.set(pending_reversals=True)
    order = sold()
    simulator.pay_out(accounts(order)[0])
    record(order, withdrawn=3000)
    if heard == "before the win":
        drain(reversal_worker.ReversalQueue(gateway))
        assert TransferReversal.objects.get().stripe_status == "pending"
        win(order)
        assert TransferReversal.objects.get().unwanted_amount == SHARE
    else:
        simulator.faults.add("drop_after", endpoint=REVERSE, times=1)
        drain(reversal_worker.ReversalQueue(gateway))
        win(order)
    if ends == "given up":
        work()
        pending = TransferReversal.objects.exclude(stripe_reversal_id="").get()
        simulator.stop_waiting(pending.stripe_reversal_id)
    else:
        simulator.add_funds(10_000, account=accounts(order)[0])
    work()
    assert kept_at_stripe(simulator, order) == [SHARE]
    assert not TransferReversal.objects.filter(unwanted_amount__gt=0).exists()
    assert set(order.transfers.values_list("next_retry_at", flat=True)) == {None}
    again = order.transfers.filter(gives_back_of__isnull=False)
    assert again.count() == (1 if ends == "done" else 0)


def test_while_the_seller_has_no_money(sold: Make, simulator: Any, work: Work, gateway: Any) -> None:
    order = sold()
    simulator.pay_out(accounts(order)[0])
    record(order, withdrawn=3000)
    drain(reversal_worker.ReversalQueue(gateway))
    assert TransferReversal.objects.get().waiting_for_funds_since is not None
    win(order)
    work()
    simulator.add_funds(10_000, account=accounts(order)[0])
    work()
    assert kept_at_stripe(simulator, order) == [SHARE]
    assert order.transfers.get().status == TransferStatus.COMPLETED


def refused(order: Order) -> TransferReversal:
    """The one reversal that is owed of it, of which Stripe said no: a debt."""
    SellerTransfer.objects.filter(order=order).update(next_retry_at=Now())
    (claimed,) = reversal_claims.claim(batch_size=1, lease=timedelta(minutes=5))
    reversal_settling.settle(claimed, Refused(message="account closed", code="account_closed"), actor="worker")
    owed = TransferReversal.objects.get(transfer__order=order)
    assert (owed.status, owed.refused) == (ReversalStatus.FAILED, True)
    return owed


def settled(owed: TransferReversal, paid: int, written_off: int) -> None:
    if paid:
        debts.pay_by_hand(reversal_id=owed.pk, amount=paid, actor="user:ann", reason="by bank transfer")
    if written_off:
        debts.write_off(reversal_id=owed.pk, amount=written_off, actor="user:ann", reason="gone")


@pytest.mark.parametrize(
    ("paid", "written_off", "given_back"),
    [(0, 0, 0), (SHARE, 0, SHARE), (0, SHARE, 0), (1000, 0, 1000), (1000, 700, 1000), (2000, 700, 2000)],
)
def test_after_what_it_took_became_a_debt(
    sold: Make, simulator: Any, work: Work, paid: int, written_off: int, given_back: int
) -> None:
    """Stripe took nothing. What the seller paid otherwise comes back, what was written off was never given."""
    order = sold()
    record(order, withdrawn=3000)
    settled(refused(order), paid, written_off)
    for _ in range(2):
        win(order)
        work()
    assert kept_at_stripe(simulator, order) == [SHARE + given_back]
    assert selectors.debt_drift() == []
    assert set(order.transfers.values_list("status", flat=True)) == {TransferStatus.COMPLETED}
    # Lost after all: what was given back for it is taken, and what is still open of it; nobody has given less, or more.
    lose_after_all(order, after=9)
    work()
    assert kept_at_stripe(simulator, order) == [paid + written_off]
    assert selectors.debt_drift() == []


@pytest.mark.parametrize("answer", ["none", "paid", "declined"])
def test_lost_after_all_while_the_payment_back_is_a_persons_to_decide(
    sold: Make, simulator: Any, work: Work, settings: Any, answer: str
) -> None:
    settings.GIVE_BACK = "ask"
    order = sold()
    record(order, withdrawn=3000)
    work()
    win(order)
    work()
    asked = order.transfers.get(gives_back_of__isnull=False)
    assert asked.last_error_code == "give_back_undecided"
    if answer == "paid":
        transfers.retry(transfer_id=asked.pk, actor="user:ann", reason="ours to pay")
        work()
        assert kept_at_stripe(simulator, order) == [SHARE]
    elif answer == "declined":
        give_backs.decline(transfer_id=asked.pk, actor="user:ann", reason="agreed with the seller")
    for after in (9, 10):
        lose_after_all(order, after=after)
        work()
        assert kept_at_stripe(simulator, order) == [0]
    asked.refresh_from_db()
    ends = TransferStatus.REVERSED if answer == "paid" else TransferStatus.CANCELED
    assert (asked.status, asked.last_error_code) == (ends, "")
    # Won once more: asked once more, but for what a person decided to keep.
    win(order, after=20, withdrawn=6000, reinstated=6000)
    work()
    waiting = order.transfers.filter(last_error_code="give_back_undecided")
    assert sum(each.amount for each in waiting) == (0 if answer == "declined" else SHARE)
    assert kept_at_stripe(simulator, order) == [0]


def test_several_disputes_of_one_charge_beside_a_partial_refund(sold: Make, simulator: Any, work: Work) -> None:
    """Of 30.00 the seller has 27.00. 10.00 are refunded, 12.00 and 15.00 are disputed: that is more than there is."""
    order = sold()
    record_refund(order, amount=1000)
    work()
    assert kept_at_stripe(simulator, order) == [1800]
    one = {"stripe_dispute_id": "dp_1", "amount": 1200, "withdrawn": 1200}
    two = {"stripe_dispute_id": "dp_2", "amount": 1500, "withdrawn": 1500}
    record(order, **one)
    work()
    assert kept_at_stripe(simulator, order) == [720]
    record(order, **two)
    work()
    assert kept_at_stripe(simulator, order) == [0]
    # With the first won, refund and second are 25.00 of 30.00.
    win(order, **one, reinstated=1200)
    work()
    assert kept_at_stripe(simulator, order) == [450]
    record(order, "lost", after=7, **two)
    win(order, after=8, **two, reinstated=1500)
    work()
    assert kept_at_stripe(simulator, order) == [1800]
    # And what is refunded after both is of what is left.
    record_refund(order, stripe_refund_id="re_2", amount=2000)
    work()
    assert kept_at_stripe(simulator, order) == [0]
