"""Waiting for a seller's money, over HTTP: refused, watched, looked at, woken, reversed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from structlog.testing import capture_logs

from marketplace.errors import StaleTransition, StripeDenied
from marketplace.models import BalanceWatch, Seller, SellerTransfer
from marketplace.services import funds
from marketplace.states import TransferStatus
from marketplace.workers.balances import BalanceQueue
from marketplace.workers.reversal import ReversalQueue
from tests.factories import SellerFactory, SellerTransferFactory
from tests.lines import BALANCE, check_is_due, due, is_due, seconds_until_check
from tests.workers.conftest import REVERSE, drain

Run = Callable[[], int]
Owing = Callable[..., SellerTransfer]
INTERVAL = 3600


@pytest.fixture
def queue(db: None, gateway: Any) -> BalanceQueue:
    return BalanceQueue(gateway)


@pytest.fixture
def seller(db: None, simulator: Any) -> Seller:
    return SellerFactory(stripe_account_id=simulator.create_account()["id"])


@pytest.fixture
def owing(seller: Seller, simulator: Any) -> Owing:
    """The seller owes a transfer back whose money is at the bank already."""

    def make(amount: int = 2000, currency: str = "eur") -> SellerTransfer:
        account = seller.stripe_account_id
        transfer = simulator.create_transfer(amount, account, currency)
        simulator.pay_out(account)
        return SellerTransferFactory(
            seller=seller, amount=amount, currency=currency, reversal_pending=True, stripe_transfer_id=transfer["id"]
        )

    return make


@pytest.fixture
def waiting(owing: Owing, run_reversals: Run, simulator: Any) -> Owing:
    """The same, and Stripe has refused the reversal; what was asked until then is forgotten."""

    def make(amount: int = 2000, currency: str = "eur") -> SellerTransfer:
        transfer = owing(amount, currency)
        assert run_reversals() == 1
        assert not is_due(transfer)
        simulator.requests.clear()
        return transfer

    return make


def status(transfer: SellerTransfer) -> str:
    transfer.refresh_from_db()
    return transfer.status


def asked(simulator: Any) -> list[str]:
    """The accounts whose balances were asked for."""
    return [request.account for request in simulator.requests.to(BALANCE)]


def assert_next_check(seller: Seller) -> None:
    until = seconds_until_check(seller)
    assert until is not None
    assert INTERVAL - 60 < until <= INTERVAL


# --- From the refusal to the money ------------------------------------------------------------------------------------


def test_a_refusal_for_lack_of_funds_puts_the_seller_under_watch(
    seller: Seller, owing: Owing, run_reversals: Run, queue: BalanceQueue, simulator: Any
) -> None:
    transfer = owing()
    run_reversals()
    assert (status(transfer), transfer.last_error_code) == (TransferStatus.REVERSAL_PENDING, "insufficient_funds")
    assert_next_check(seller)
    # Not asked before its time.
    assert drain(queue) == 0
    assert asked(simulator) == []


def test_a_check_wakes_what_waits_without_any_event(
    seller: Seller, waiting: Owing, run_reversals: Run, queue: BalanceQueue, simulator: Any
) -> None:
    transfer = waiting()
    simulator.add_funds(2000, account=seller.stripe_account_id)
    check_is_due(seller)
    assert drain(queue) == 1
    assert asked(simulator) == [seller.stripe_account_id]
    assert is_due(transfer)
    assert run_reversals() == 1
    assert (status(transfer), transfer.retry_count) == (TransferStatus.REVERSED, 0)
    assert len(simulator.reversals_of(transfer.stripe_transfer_id)) == 1
    assert simulator.audit()["suspicious"] == []


def test_a_check_that_finds_nothing_wakes_nobody_and_comes_again(
    seller: Seller, waiting: Owing, queue: BalanceQueue, simulator: Any
) -> None:
    transfer = waiting()
    check_is_due(seller)
    drain(queue)
    assert not is_due(transfer)
    assert_next_check(seller)
    assert BalanceWatch.objects.get().available == {"eur": 0}


def test_a_seller_below_zero_is_not_asked_for_more(
    seller: Seller, waiting: Owing, run_reversals: Run, queue: BalanceQueue, simulator: Any
) -> None:
    transfer = waiting()
    account = seller.stripe_account_id
    simulator.may_go_negative(account)
    simulator.create_reversal(simulator.create_transfer(500, account, "eur")["id"])
    taken = simulator.create_transfer(700, account)
    simulator.pay_out(account)
    simulator.create_reversal(taken["id"])
    simulator.may_go_negative(account, allowed=False)
    check_is_due(seller)
    drain(queue)
    assert BalanceWatch.objects.get().available == {"eur": -700}
    assert not is_due(transfer)


def test_money_of_another_currency_wakes_nobody(
    seller: Seller, waiting: Owing, queue: BalanceQueue, simulator: Any
) -> None:
    euros, yen = waiting(), waiting(500, "jpy")
    simulator.add_funds(900, "jpy", account=seller.stripe_account_id)
    check_is_due(seller)
    drain(queue)
    assert due([euros, yen]) == [False, True]


def test_the_oldest_come_first_and_the_rest_follows_by_itself(
    seller: Seller, waiting: Owing, run_reversals: Run, queue: BalanceQueue, simulator: Any
) -> None:
    line = [waiting(amount) for amount in (2000, 1000, 3000, 4000)]
    account = seller.stripe_account_id
    simulator.add_funds(3500, account=account)
    check_is_due(seller)
    drain(queue)
    assert due(line) == [True, True, False, False]
    # More than we know of came meanwhile: the successes go on with the line, until Stripe says no.
    simulator.add_funds(3000, account=account)
    assert run_reversals() == 4
    assert [status(transfer) for transfer in line] == [TransferStatus.REVERSED] * 3 + [TransferStatus.REVERSAL_PENDING]
    assert simulator.balance(account)[0] == 500
    sent = [request.path.split("/")[3] for request in simulator.requests.to(REVERSE)]
    assert sent == [transfer.stripe_transfer_id for transfer in line]
    assert not is_due(line[3])


@pytest.mark.parametrize("touched", [False, True])
def test_a_reversal_that_never_waited_wakes_nobody_behind_it(
    seller: Seller, waiting: Owing, owing: Owing, gateway: Any, simulator: Any, touched: bool
) -> None:
    behind = waiting(5000)
    fresh = owing(100)
    simulator.add_funds(100, account=seller.stripe_account_id)
    queue = ReversalQueue(gateway)
    (claimed,) = queue.claim(batch_size=9, lease=timedelta(minutes=5))
    if touched:
        # Then it is not settled by the short statement.
        SellerTransfer.objects.get(pk=fresh.pk).change(reason="touched meanwhile", actor="test")
    queue.perform(claimed)
    assert status(fresh) == TransferStatus.REVERSED
    assert not is_due(behind)


def test_a_reversal_that_had_waited_and_then_failed_otherwise_goes_on_with_the_line(
    seller: Seller, waiting: Owing, run_reversals: Run, queue: BalanceQueue, simulator: Any
) -> None:
    line = [waiting(2000), waiting(1000)]
    simulator.add_funds(2000, account=seller.stripe_account_id)
    check_is_due(seller)
    drain(queue)
    simulator.faults.add("drop_after", endpoint=REVERSE, times=1)
    run_reversals()
    assert (status(line[0]), line[0].last_error_code) == (TransferStatus.REVERSAL_PENDING, "unknown")
    SellerTransfer.objects.filter(pk=line[0].pk).update(next_retry_at=line[0].last_error_at)
    simulator.add_funds(1000, account=seller.stripe_account_id)
    assert run_reversals() == 2
    assert [status(transfer) for transfer in line] == [TransferStatus.REVERSED] * 2


# --- The pace ---------------------------------------------------------------------------------------------------------


def test_one_question_an_interval_for_any_number_of_transfers_and_workers(
    seller: Seller, waiting: Owing, gateway: Any, simulator: Any
) -> None:
    for _ in range(5):
        waiting()
    check_is_due(seller)
    assert [drain(BalanceQueue(gateway)) for _ in range(3)] == [1, 0, 0]
    assert asked(simulator) == [seller.stripe_account_id]
    waiting()
    assert drain(BalanceQueue(gateway)) == 0


def test_a_check_in_one_workers_hands_is_taken_by_no_other(
    seller: Seller, waiting: Owing, gateway: Any, simulator: Any
) -> None:
    waiting()
    check_is_due(seller)
    one, other = BalanceQueue(gateway), BalanceQueue(gateway)
    (claimed,) = one.claim(batch_size=9, lease=timedelta(minutes=5))
    assert other.claim(batch_size=9, lease=timedelta(minutes=5)) == []
    assert not one.is_held_back(claimed)
    one.perform(claimed)
    assert len(asked(simulator)) == 1


def test_nothing_is_asked_when_nothing_waits(
    seller: Seller, waiting: Owing, run_reversals: Run, queue: BalanceQueue, simulator: Any
) -> None:
    transfer = waiting()
    simulator.add_funds(2000, account=seller.stripe_account_id)
    SellerTransfer.objects.update(next_retry_at=transfer.created_at)
    run_reversals()
    assert status(transfer) == TransferStatus.REVERSED
    check_is_due(seller)
    assert drain(queue) == 1
    assert asked(simulator) == []
    assert seconds_until_check(seller) is None
    assert drain(queue) == 0


def test_each_seller_has_a_check_of_its_own(
    seller: Seller, waiting: Owing, queue: BalanceQueue, simulator: Any
) -> None:
    waiting()
    other = SellerFactory(stripe_account_id=simulator.create_account()["id"])
    SellerTransferFactory(seller=other, reversal_pending=True, last_error_code="insufficient_funds")
    funds.watch(other.pk)
    check_is_due(seller)
    check_is_due(other)
    assert drain(queue) == 2
    assert sorted(asked(simulator)) == sorted([seller.stripe_account_id, other.stripe_account_id])


# --- Answers that are none --------------------------------------------------------------------------------------------


def test_an_account_that_disconnected_ends_its_watch_and_stops_nobody(
    seller: Seller, waiting: Owing, queue: BalanceQueue, simulator: Any
) -> None:
    transfer = waiting()
    simulator.deauthorize(seller.stripe_account_id)
    check_is_due(seller)
    with capture_logs() as logs:
        assert drain(queue) == 1
    assert seconds_until_check(seller) is None
    assert [entry["seller"] for entry in logs if entry["event"] == "balance_not_readable"] == [seller.pk]
    assert (status(transfer), is_due(transfer)) == (TransferStatus.REVERSAL_PENDING, False)


def test_a_refused_key_stops_the_worker_and_the_check_stays_due(
    seller: Seller, waiting: Owing, queue: BalanceQueue, simulator: Any
) -> None:
    waiting()
    check_is_due(seller)
    simulator.faults.add("unauthorized", endpoint=BALANCE, times=1)
    with pytest.raises(StripeDenied):
        drain(queue)
    assert drain(queue) == 1
    assert [request.status for request in simulator.requests.to(BALANCE)] == [401, 200]


@pytest.mark.parametrize("fault", ["unavailable", "drop_before", "error_500", "rate_limited", "conflict", "unreadable"])
def test_without_an_answer_the_next_interval_is_waited_for(
    seller: Seller, waiting: Owing, queue: BalanceQueue, simulator: Any, fault: str
) -> None:
    transfer = waiting()
    simulator.add_funds(2000, account=seller.stripe_account_id)
    check_is_due(seller)
    simulator.faults.add(fault, endpoint=BALANCE, times=1)
    drain(queue)
    assert_next_check(seller)
    assert BalanceWatch.objects.get().last_error_code
    assert (is_due(transfer), status(transfer), transfer.retry_count) == (False, TransferStatus.REVERSAL_PENDING, 0)
    check_is_due(seller)
    drain(queue)
    assert is_due(transfer)


# --- As any queue -----------------------------------------------------------------------------------------------------


def test_a_check_given_back_unbegun_is_due_at_once(seller: Seller, waiting: Owing, queue: BalanceQueue) -> None:
    waiting()
    check_is_due(seller)
    (claimed,) = queue.claim(batch_size=9, lease=timedelta(minutes=5))
    assert queue.describe(claimed) == {"seller": seller.pk}
    queue.release(claimed)
    (again,) = queue.claim(batch_size=9, lease=timedelta(minutes=5))
    assert again.pk == claimed.pk


def test_a_process_has_no_more_checks_in_hand_than_it_may(db: None, gateway: Any) -> None:
    for _ in range(4):
        BalanceWatch.objects.create(seller=SellerFactory(), available={}, next_retry_at=Now())
    queue = BalanceQueue(gateway, most=2)

    def claim() -> list[BalanceWatch]:
        return list(queue.claim(batch_size=10, lease=timedelta(minutes=5)))

    given_back, performed = claim()
    assert claim() == []
    queue.release(given_back)
    queue.perform(performed)
    assert len(claim()) == 2


def test_an_error_of_our_own_is_kept_with_the_watch(seller: Seller, waiting: Owing, queue: BalanceQueue) -> None:
    waiting()
    check_is_due(seller)
    (claimed,) = queue.claim(batch_size=9, lease=timedelta(minutes=5))
    queue.settle_unexpected(claimed, ZeroDivisionError("a bug"))
    assert BalanceWatch.objects.get().last_error_code == "unexpected_error"
    assert_next_check(seller)


def test_a_late_answer_changes_nothing(seller: Seller, waiting: Owing, queue: BalanceQueue, simulator: Any) -> None:
    transfer = waiting()
    simulator.add_funds(2000, account=seller.stripe_account_id)
    check_is_due(seller)
    (late,) = queue.claim(batch_size=9, lease=timedelta(0))
    (newer,) = queue.claim(batch_size=9, lease=timedelta(minutes=5))
    with pytest.raises(StaleTransition):
        queue.perform(late)
    assert not is_due(transfer)
    queue.perform(newer)
    assert is_due(transfer)
