"""A database that is away, slow or asked twice at once: nothing half done, nothing lost, nothing done twice."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError, connection, connections

from marketplace import inbox
from marketplace.errors import ConflictingFacts, MarketplaceError, UnknownOrder
from marketplace.gateway import stripe_events
from marketplace.models import Order, Refund, WebhookEvent
from marketplace.services import refund_attempts, refund_records
from marketplace.states import EventStatus, OrderStatus, RefundStatus
from tests.death.processes import wait_until
from tests.factories import RefundFactory, order_with_items, order_with_transfers
from tests.inbox.conftest import Event, events_of, make_due, only, pay

Verified = Callable[[Event], stripe_events.IncomingEvent]


@pytest.fixture
def refunded(transactional_db: None, simulator: Any) -> Event:
    """The event of a refund of a paid order."""
    charge = simulator.create_charge(5000)
    order_with_transfers((3000, 2000), stripe_charge_id=charge["id"], stripe_payment_intent_id=charge["payment_intent"])
    refund = simulator.create_refund(charge["id"], status="succeeded")
    event: Event = only(events_of(simulator, "refund.created", refund["id"]))
    return event


@pytest.fixture
def another_session(transactional_db: None) -> Any:
    session = connection.copy()
    yield session
    session.close()


def test_a_statement_that_takes_too_long_stores_nothing(
    verified: Verified, refunded: Event, another_session: Any
) -> None:
    another_session.set_autocommit(False)
    with another_session.cursor() as cursor:
        cursor.execute("SELECT id FROM marketplace_order FOR UPDATE")
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '100ms'")
    try:
        with pytest.raises(OperationalError):
            inbox.receive(verified(refunded))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET statement_timeout")
        another_session.rollback()
    assert not WebhookEvent.objects.exists()
    assert not Refund.objects.exists()
    # Stripe sends it again, and all is well.
    assert inbox.receive(verified(refunded)).status == EventStatus.PROCESSED


def test_a_connection_that_breaks_in_the_middle_stores_nothing(
    verified: Verified, refunded: Event, another_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = refund_records.record

    def broken(*args: Any, **kwargs: Any) -> Any:
        break_connection(another_session)
        return original(*args, **kwargs)

    monkeypatch.setattr(refund_records, "record", broken)
    with pytest.raises((OperationalError, InterfaceError)):
        inbox.receive(verified(refunded))
    connection.close()
    monkeypatch.undo()
    assert not WebhookEvent.objects.exists()
    assert inbox.receive(verified(refunded)).status == EventStatus.PROCESSED


def break_connection(another_session: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    with another_session.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


@pytest.mark.parametrize("refusal", [UnknownOrder(), ConflictingFacts()], ids=["unknown", "conflict"])
def test_a_connection_that_breaks_after_the_effect_was_refused_stores_nothing(
    verified: Verified,
    refunded: Event,
    another_session: Any,
    monkeypatch: pytest.MonkeyPatch,
    refusal: MarketplaceError,
) -> None:
    """Django then cannot take the refused effect back, and hides that behind the refusal."""

    def refused(*_: Any, **__: Any) -> Any:
        break_connection(another_session)
        raise refusal

    monkeypatch.setattr(refund_records, "record", refused)
    with pytest.raises(OperationalError):
        inbox.receive(verified(refunded))
    connection.close()
    monkeypatch.undo()
    assert not WebhookEvent.objects.exists()
    assert inbox.receive(verified(refunded)).status == EventStatus.PROCESSED


def test_an_answer_is_not_taken_for_a_contradiction_when_the_connection_broke(
    transactional_db: None, simulator: Any, gateway: Any, another_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = simulator.create_charge(5000)
    order = order_with_transfers((5000,), stripe_payment_intent_id=charge["payment_intent"])
    refund = Refund.objects.get(pk=RefundFactory(order=order, amount=5000).pk)
    answer = refund_attempts.ask(refund, gateway)

    def refused(*_: Any, **__: Any) -> Any:
        break_connection(another_session)
        raise ConflictingFacts("of another amount")

    monkeypatch.setattr(refund_records, "record", refused)
    with pytest.raises(OperationalError, match="the database went away"):
        refund_attempts.settle(refund, answer, actor="test")
    connection.close()
    monkeypatch.undo()
    refund.refresh_from_db()
    assert (refund.status, refund.last_error_code) == (RefundStatus.REQUESTED, "")
    assert refund_attempts.settle(refund, answer, actor="test").status == RefundStatus.SUCCEEDED


def test_a_retry_during_trouble_spends_nothing_and_keeps_its_lease(
    verified: Verified, refunded: Event, another_session: Any
) -> None:
    Order.objects.update(amount=4999)
    row = inbox.receive(verified(refunded))
    assert row.status == EventStatus.FAILED
    make_due()
    claimed = only(inbox.claim(batch_size=10, lease=timedelta(minutes=5)))
    another_session.set_autocommit(False)
    with another_session.cursor() as cursor:
        cursor.execute("SELECT id FROM marketplace_order FOR UPDATE")
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '100ms'")
    try:
        with pytest.raises(OperationalError):
            inbox.apply_again(claimed)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET statement_timeout")
        another_session.rollback()
    row.refresh_from_db()
    assert (row.retry_count, row.lease_token) == (1, claimed.lease_token)


def test_two_deliveries_of_one_event_at_once_apply_it_once(
    transactional_db: None, unblocked_database: None, verified: Verified, simulator: Any
) -> None:
    order = order_with_items((3000, 2000))
    pay(simulator, order)
    event = verified(only(events_of(simulator, "payment_intent.succeeded")))
    together = threading.Barrier(4)
    rows: list[WebhookEvent] = []

    def deliver() -> None:
        try:
            together.wait(timeout=10)
            rows.append(inbox.receive(event))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({row.pk for row in rows}) == 1
    assert [row.status for row in rows] == [EventStatus.PROCESSED] * 4
    order.refresh_from_db()
    assert (order.status, order.transfers.count()) == (OrderStatus.PAID, 2)


def test_two_events_of_one_refund_at_once_owe_it_once(
    unblocked_database: None, verified: Verified, simulator: Any, refunded: Event
) -> None:
    twin = simulator.emit("refund.updated", refunded["data"]["object"])
    together = threading.Barrier(2)
    rows: list[WebhookEvent] = []

    def deliver(event: Event) -> None:
        try:
            incoming = verified(event)
            together.wait(timeout=10)
            rows.append(inbox.receive(incoming))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=deliver, args=[event]) for event in (refunded, twin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.status for row in rows] == [EventStatus.PROCESSED] * 2
    order = Order.objects.get()
    assert order.refunds.count() == 1
    assert [transfer.reversals.count() for transfer in order.transfers.all()] == [1, 1]


@pytest.fixture
def two_early(transactional_db: None, simulator: Any, settings: Any) -> tuple[Event, Event]:
    """A refund and its payment, of which nothing is known here. An event without its order is not tried twice."""
    settings.REVERSAL_MAX_RETRIES = 0
    charge = pay(simulator, order_with_items((3000, 2000)))
    refund = simulator.create_refund(charge["id"], status="succeeded")
    return only(events_of(simulator, "refund.created", refund["id"])), only(
        events_of(simulator, "payment_intent.succeeded")
    )


def test_a_payment_taken_in_between_a_refunds_look_and_its_mark_is_seen(
    two_early: tuple[Event, Event], unblocked_database: None, verified: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    refund, payment = map(verified, two_early)
    original = refund_records.record
    looks: list[Any] = []

    def looked_just_before(*args: Any, **kwargs: Any) -> Any:
        looks.append(args)
        if len(looks) > 1:
            return original(*args, **kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            elsewhere(lambda: inbox.receive(payment)).join()

    monkeypatch.setattr(refund_records, "record", looked_just_before)
    assert inbox.receive(refund).status == EventStatus.PROCESSED
    assert Order.objects.get().status == OrderStatus.REFUNDED


def test_a_payment_waits_for_a_refund_that_is_being_marked_and_then_applies_it(
    two_early: tuple[Event, Event],
    unblocked_database: None,
    verified: Verified,
    another_session: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refund, payment = map(verified, two_early)
    original = inbox._mark_not_applied
    threads: list[threading.Thread] = []

    def marks_while_the_payment_waits(*args: Any) -> None:
        threads.append(elsewhere(lambda: inbox.receive(payment)))
        wait_until(lambda: someone_waits_for_a_turn(another_session), "the payment to wait")
        original(*args)

    monkeypatch.setattr(inbox, "_mark_not_applied", marks_while_the_payment_waits)
    assert inbox.receive(refund).status == EventStatus.IGNORED
    threads[0].join()
    assert {row.status for row in WebhookEvent.objects.all()} == {EventStatus.PROCESSED}
    assert Order.objects.get().status == OrderStatus.REFUNDED


def elsewhere(act: Callable[[], Any]) -> threading.Thread:
    """Begin something in another thread, with a connection of its own."""

    def run() -> None:
        try:
            act()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def someone_waits_for_a_turn(session: Any) -> bool:
    with session.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return bool(cursor.fetchone()[0])
