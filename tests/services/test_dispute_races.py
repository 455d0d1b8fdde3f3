"""A dispute, what undoes it, and who works on the same order, at once in real threads: sellers end with what is due."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections, transaction

from marketplace.errors import NotAllowedNow, TooMuch
from marketplace.models import Order, SellerTransfer, TransferReversal
from marketplace.services import debts, disputes, refund_records, seen_at_stripe, transfers
from marketplace.workers import reversal as reversal_worker
from tests.services.conftest import REVERSE, Make, kept_at_stripe
from tests.services.test_disputes import facts
from tests.services.test_disputes_won import refused
from tests.services.test_refunds import facts as refund_facts
from tests.workers.conftest import drain

PATIENCE = 30
ROUNDS = 4
Act = Callable[[], Any]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("unblocked_database")]


def tell(order: Order, status: str = "needs_response", **told: Any) -> None:
    """As a webhook does it: in a transaction of its own."""
    with transaction.atomic():
        disputes.record(facts(order, status, **told), actor="stripe:evt_1")


def win(order: Order, **told: Any) -> None:
    tell(order, "won", after=5, withdrawn=order.amount, reinstated=order.amount, **told)


def at_once(*acts: Act) -> None:
    """Each in a thread and with a connection of its own, all beginning at the same moment. No error is let pass."""
    now = threading.Barrier(len(acts))
    errors: list[BaseException] = []

    def run(act: Act) -> None:
        try:
            now.wait(PATIENCE)
            act()
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)


class Meanwhile:
    """The gateway, with something in another thread before the reversal arrives at Stripe, or after it has."""

    def __init__(self, gateway: Any, act: Act, *, first: bool) -> None:
        self._gateway, self._act, self._first = gateway, act, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gateway, name)

    def reverse_transfer(self, *args: Any, **sent: Any) -> Any:
        if self._first:
            at_once(self._act)
        answer = self._gateway.reverse_transfer(*args, **sent)
        if not self._first:
            at_once(self._act)
        return answer


def is_at_rest(order: Order) -> None:
    assert set(order.transfers.values_list("next_retry_at", "lease_token")) == {(None, None)}
    assert not TransferReversal.objects.filter(unwanted_amount__gt=0).exists()


@pytest.mark.parametrize("fault", ["", "drop_before", "drop_after", "error_500", "rate_limited"])
@pytest.mark.parametrize("first", [True, False], ids=["before it arrived", "after Stripe made it"])
def test_a_win_while_the_worker_takes_the_money_leaves_the_seller_whole(
    sold: Make, work: Act, gateway: Any, simulator: Any, first: bool, fault: str
) -> None:
    order = sold()
    tell(order, withdrawn=order.amount)
    if fault:
        simulator.faults.add(fault, endpoint=REVERSE, times=1)
    drain(reversal_worker.ReversalQueue(Meanwhile(gateway, lambda: win(order), first=first)))  # type: ignore[arg-type]
    work()
    assert kept_at_stripe(simulator, order) == [2700]
    is_at_rest(order)
    audit = simulator.audit()
    assert (audit["problems"], audit["suspicious"]) == ([], [])


def test_whoever_is_first_the_winner_or_the_worker(sold: Make, work: Act, gateway: Any, simulator: Any) -> None:
    for number in range(ROUNDS):
        order = sold()
        named = {"stripe_dispute_id": f"dp_{number}"}
        tell(order, withdrawn=order.amount, **named)
        acts: list[Act] = [
            lambda: drain(reversal_worker.ReversalQueue(gateway)),
            lambda order=order, named=named: win(order, **named),
        ]
        at_once(*(acts if number % 2 else reversed(acts)))
        work()
        assert kept_at_stripe(simulator, order) == [2700]
        is_at_rest(order)


def test_two_disputes_a_refund_and_a_reversal_made_elsewhere_of_one_order_at_once(
    sold: Make, work: Act, gateway: Any, simulator: Any
) -> None:
    """All of them lock the order before anything of it, so that none waits for another that waits for it."""
    for number in range(ROUNDS):
        order = sold((3000, 2000))
        one, two = order.transfers.order_by("id")
        simulator.create_reversal(one.stripe_transfer_id, 100)
        shown = gateway.retrieve_transfer(one.stripe_transfer_id).transfer
        listed = gateway.list_reversals(one.stripe_transfer_id).reversals

        def seen(shown: Any = shown, listed: Any = listed) -> None:
            with transaction.atomic():
                seen_at_stripe.record(shown, listed, actor="stripe:evt_3")

        def refund(order: Order = order, number: int = number) -> None:
            with transaction.atomic():
                told = refund_facts(order, amount=500, stripe_refund_id=f"re_{number}")
                refund_records.record(told, actor="stripe:evt_2")

        acts: list[Act] = [
            lambda order=order, number=number: tell(order, stripe_dispute_id=f"dp_{number}a", amount=1000),
            lambda order=order, number=number: tell(order, stripe_dispute_id=f"dp_{number}b", amount=1500),
            refund,
            seen,
            lambda: drain(reversal_worker.ReversalQueue(gateway)),
        ]
        turn = number % len(acts)
        at_once(*acts[turn:], *acts[:turn])
        work()
        # Of 50.00 each seller got nine tenths, and gives as much of 30.00; the 1.00 that somebody took is part of it.
        assert kept_at_stripe(simulator, order) == [1080, 720]
        is_at_rest(order)
        assert (one.pk, two.pk) == tuple(order.transfers.order_by("id").values_list("pk", flat=True))


def test_a_win_beside_an_operators_retry_and_a_payment_by_hand(
    sold: Make, work: Act, gateway: Any, simulator: Any
) -> None:
    """Whatever of the three comes first, the seller has its share at Stripe, and what it paid by hand besides."""
    for number in range(ROUNDS):
        order = sold()
        named = {"stripe_dispute_id": f"dp_{number}"}
        tell(order, withdrawn=order.amount, **named)
        owed = refused(order)
        row = order.transfers.get()
        paid: list[int] = []

        def pay(owed: TransferReversal = owed, paid: list[int] = paid) -> None:
            if _allowed(lambda: debts.pay_by_hand(reversal_id=owed.pk, amount=700, actor="user:ann", reason="bank")):
                paid.append(700)

        def retry(row: SellerTransfer = row) -> None:
            _allowed(lambda: transfers.retry(transfer_id=row.pk, actor="user:ann", reason="once more"))

        acts: list[Act] = [lambda order=order, named=named: win(order, **named), pay, retry]
        turn = number % len(acts)
        at_once(*acts[turn:], *acts[:turn])
        work()
        assert kept_at_stripe(simulator, order) == [2700 + sum(paid)]
        is_at_rest(order)


def _allowed(act: Act) -> bool:
    """Who comes too late is told so."""
    try:
        act()
    except (NotAllowedNow, TooMuch):
        return False
    return True
