"""``balance.available`` of a seller's account makes due what waited for the money."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from marketplace import inbox
from marketplace.gateway import stripe_events
from marketplace.models import BalanceWatch, Seller, SellerTransfer, WebhookEvent
from marketplace.services import funds
from marketplace.states import EventStatus, TransferStatus
from marketplace.workers.balances import BalanceQueue
from marketplace.workers.reversal import ReversalQueue
from tests.factories import SellerFactory, SellerTransferFactory
from tests.inbox.conftest import Event, only
from tests.lines import BALANCE, check_is_due, due, is_due, wait

Deliver = Callable[[Event], WebhookEvent]
LEASE = timedelta(minutes=5)


@pytest.fixture
def account(simulator: Any) -> str:
    made: str = simulator.create_account()["id"]
    return made


@pytest.fixture
def seller(db: None, account: str) -> Seller:
    return SellerFactory(stripe_account_id=account)


def top_up(simulator: Any, account: str, amount: int, currency: str = "eur") -> Event:
    """The event of money that came."""
    simulator.add_funds(amount, currency, account=account)
    event: Event = simulator.events(type="balance.available", account=account)[-1]
    return event


def balance_of(account: str | None, simulator: Any, *available: dict[str, Any]) -> Event:
    made: Event = simulator.emit(
        "balance.available", {"object": "balance", "available": list(available), "pending": []}, account=account
    )
    return made


def work(queue: Any) -> int:
    claimed = queue.claim(batch_size=10, lease=LEASE)
    for row in claimed:
        queue.perform(row)
    return len(claimed)


# --- Money came -------------------------------------------------------------------------------------------------------


def test_the_money_of_a_seller_who_owes_is_taken_as_soon_as_stripe_tells_of_it(
    deliver: Deliver, simulator: Any, gateway: Any, seller: Seller, account: str
) -> None:
    made = simulator.create_transfer(2000, account)
    simulator.pay_out(account)
    transfer = SellerTransferFactory(seller=seller, amount=2000, reversal_pending=True, stripe_transfer_id=made["id"])
    reversing = ReversalQueue(gateway)
    assert work(reversing) == 1
    assert work(reversing) == 0
    row = deliver(top_up(simulator, account, 2000))
    assert row.status == EventStatus.PROCESSED
    assert row.outcome == f"1 of the transfers that wait for the balance of {account} are due now"
    assert work(reversing) == 1
    transfer.refresh_from_db()
    assert (transfer.status, transfer.retry_count) == (TransferStatus.REVERSED, 0)
    assert simulator.requests.to(BALANCE) == []


def test_the_longest_waiting_come_first_and_no_more_than_came(
    deliver: Deliver, simulator: Any, seller: Seller, account: str
) -> None:
    line = [wait(seller, 1000, minutes=minutes) for minutes in (10, 30, 20)]
    deliver(top_up(simulator, account, 2500))
    assert due(line) == [False, True, True]


def test_what_stripe_said_is_kept_with_its_time(deliver: Deliver, simulator: Any, seller: Seller, account: str) -> None:
    wait(seller, 1000)
    row = deliver(top_up(simulator, account, 300))
    watch = BalanceWatch.objects.get()
    assert (watch.seller, watch.available, watch.seen_at) == (seller, {"eur": 300}, row.stripe_created_at)


def test_an_event_does_not_put_the_check_off(deliver: Deliver, simulator: Any, seller: Seller, account: str) -> None:
    wait(seller, 1000)
    funds.watch(seller.pk)
    check_is_due(seller)
    deliver(top_up(simulator, account, 300))
    assert BalanceWatch.objects.get().next_retry_at <= WebhookEvent.objects.get().received_at


def test_a_row_of_an_older_version_without_a_watch_is_woken_and_watched(
    deliver: Deliver, simulator: Any, seller: Seller, account: str
) -> None:
    transfer = wait(seller, 1000)
    assert not BalanceWatch.objects.exists()
    deliver(top_up(simulator, account, 1000))
    assert is_due(transfer)
    assert BalanceWatch.objects.get().next_retry_at is not None


@pytest.mark.parametrize("amount", [0, -1, -5000])
def test_a_balance_without_money_wakes_nobody(
    deliver: Deliver, simulator: Any, seller: Seller, account: str, amount: int
) -> None:
    transfer = wait(seller, 1000)
    row = deliver(balance_of(account, simulator, {"amount": amount, "currency": "eur"}))
    assert row.status == EventStatus.PROCESSED
    assert not is_due(transfer)
    assert BalanceWatch.objects.get().available == {"eur": amount}


def test_money_of_another_currency_wakes_nobody(deliver: Deliver, simulator: Any, seller: Seller, account: str) -> None:
    transfer = wait(seller, 1000)
    euros, yen = {"amount": 0, "currency": "eur"}, {"amount": 9000, "currency": "jpy"}
    deliver(balance_of(account, simulator, euros, yen))
    assert not is_due(transfer)


def test_older_news_of_a_balance_does_not_undo_newer(
    deliver: Deliver, simulator: Any, seller: Seller, account: str
) -> None:
    simulator.clock.freeze()
    wait(seller, 9000)
    older = top_up(simulator, account, 100)
    simulator.clock.advance(60)
    newer = top_up(simulator, account, 200)
    deliver(newer)
    row = deliver(older)
    watch = BalanceWatch.objects.get()
    assert (row.status, watch.available) == (EventStatus.PROCESSED, {"eur": 300})
    assert watch.seen_at is not None
    assert watch.seen_at.timestamp() == newer["created"]


def test_the_same_event_again_wakes_nobody_again(
    deliver: Deliver, simulator: Any, seller: Seller, account: str
) -> None:
    transfer = wait(seller, 1000)
    event = top_up(simulator, account, 1000)
    deliver(event)
    later = wait(seller, 500, minutes=1)
    SellerTransfer.objects.filter(pk=transfer.pk).update(next_retry_at=later.next_retry_at)
    deliver(event)
    assert due([transfer, later]) == [False, False]
    assert WebhookEvent.objects.count() == 1


# --- Nobody's ---------------------------------------------------------------------------------------------------------


def test_the_balance_of_a_seller_whom_nothing_waits_for_is_ignored(
    deliver: Deliver, simulator: Any, seller: Seller, account: str
) -> None:
    wait(SellerFactory(), 1000)
    row = deliver(top_up(simulator, account, 1000))
    assert (row.status, row.outcome) == (
        EventStatus.IGNORED,
        f"no reversal waits for the balance of {account}",
    )
    assert not BalanceWatch.objects.exists()


def test_the_balance_of_an_account_that_is_no_sellers_is_ignored(
    deliver: Deliver, simulator: Any, account: str
) -> None:
    transfer = wait(SellerFactory(), 1000)
    row = deliver(top_up(simulator, account, 1000))
    assert row.status == EventStatus.IGNORED
    assert not is_due(transfer)


def test_our_own_balance_is_ignored(deliver: Deliver, simulator: Any, seller: Seller) -> None:
    transfer = wait(seller, 1000)
    row = deliver(balance_of(None, simulator, {"amount": 5000, "currency": "eur"}))
    assert (row.status, row.outcome) == (EventStatus.IGNORED, "this type is used for connected accounts only")
    assert not is_due(transfer)


@pytest.mark.parametrize(
    "available",
    [
        None,
        {"eur": 5},
        [{"currency": "eur"}],
        [{"amount": "5", "currency": "eur"}],
        [{"amount": 5.0, "currency": "eur"}],
        [{"amount": True, "currency": "eur"}],
        [{"amount": 5, "currency": ""}],
        [7],
    ],
)
def test_a_balance_of_an_unexpected_shape_is_kept_as_malformed(
    deliver: Deliver, simulator: Any, seller: Seller, account: str, available: Any
) -> None:
    transfer = wait(seller, 1000)
    row = deliver(simulator.emit("balance.available", {"object": "balance", "available": available}, account=account))
    assert (row.status, row.last_error_code) == (EventStatus.FAILED, "MalformedEvent")
    assert not is_due(transfer)


# --- Several at once --------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_an_event_and_a_check_of_the_same_money_at_once_wake_what_it_covers(
    unblocked_database: None,
    verified: Callable[[Event], stripe_events.IncomingEvent],
    simulator: Any,
    gateway: Any,
    account: str,
) -> None:
    seller = SellerFactory(stripe_account_id=account)
    line = [wait(seller, 1000, minutes=30 - number) for number in range(5)]
    funds.watch(seller.pk)
    event = verified(top_up(simulator, account, 2500))
    check_is_due(seller)
    queue = BalanceQueue(gateway)
    claimed = only(queue.claim(batch_size=9, lease=LEASE))
    together = threading.Barrier(2)
    finished: list[str] = []

    def run(name: str, act: Callable[[], Any]) -> None:
        try:
            together.wait(timeout=10)
            act()
            finished.append(name)
        finally:
            connections.close_all()

    threads = [
        threading.Thread(target=run, args=("event", lambda: inbox.receive(event))),
        threading.Thread(target=run, args=("check", lambda: queue.perform(claimed))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == ["check", "event"]
    assert WebhookEvent.objects.get().status == EventStatus.PROCESSED
    assert due(line) == [True, True, False, False, False]
    assert len(simulator.requests.to(BALANCE)) == 1
