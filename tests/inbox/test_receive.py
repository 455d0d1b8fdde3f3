"""Each kind of event the whole way: what it does, what is stored of it, and that both are one transaction."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from structlog.testing import capture_logs

from marketplace import inbox
from marketplace.errors import MalformedEvent, StaleTransition
from marketplace.gateway import stripe_events
from marketplace.gateway.contract import AccountFacts
from marketplace.models import Order, Refund, Seller, SellerTransfer, TransferReversal, WebhookEvent
from marketplace.services import sellers
from marketplace.states import EventStatus, OrderStatus, RefundStatus, TransferStatus
from marketplace.workers.reversal import EventQueue
from tests.factories import SellerFactory, WebhookEventFactory
from tests.inbox.conftest import SECRET, Event, events_of, make_due, only, pay, work

Deliver = Callable[[Event], WebhookEvent]
Paid = tuple[Order, str]


def seconds_until(row: WebhookEvent) -> float:
    assert row.next_retry_at is not None
    return (row.next_retry_at - timezone.now()).total_seconds()


def succeeded(simulator: Any, charge: str, amount: int | None = None) -> tuple[str, Event]:
    """A refund made in the dashboard that succeeded, and its event."""
    refund = simulator.create_refund(charge, amount, status="succeeded")
    return refund["id"], only(events_of(simulator, "refund.created", refund["id"]))


# --- Payments ---------------------------------------------------------------------------------------------------------


def test_a_payment_makes_the_order_paid_and_the_transfers_due(deliver: Deliver, simulator: Any, placed: Order) -> None:
    charge = pay(simulator, placed)
    row = deliver(only(events_of(simulator, "payment_intent.succeeded")))
    placed.refresh_from_db()
    assert (row.status, row.outcome) == (EventStatus.PROCESSED, f"order {placed.pk} is paid")
    assert (row.next_retry_at, row.last_error_code, row.retry_count) == (None, "", 0)
    assert (placed.status, placed.stripe_charge_id) == (OrderStatus.PAID, charge["id"])
    assert placed.stripe_payment_intent_id == charge["payment_intent"]
    assert [transfer.status for transfer in placed.transfers.all()] == [TransferStatus.PENDING] * 2
    assert placed.history.latest("pgh_id").pgh_context["actor"] == f"stripe:{row.stripe_event_id}"


def test_the_event_is_stored_as_stripe_signed_it(deliver: Deliver, simulator: Any, placed: Order) -> None:
    pay(simulator, placed)
    event = only(events_of(simulator, "payment_intent.succeeded"))
    row = deliver(event)
    assert row.payload == event
    assert (row.stripe_event_id, row.type, row.livemode) == (event["id"], event["type"], False)
    assert (row.api_version, row.stripe_account_id) == (event["api_version"], "")
    assert row.stripe_created_at.timestamp() == event["created"]


def test_the_same_event_again_changes_nothing_and_gives_the_first_row(
    deliver: Deliver, simulator: Any, placed: Order
) -> None:
    pay(simulator, placed)
    event = only(events_of(simulator, "payment_intent.succeeded"))
    first = deliver(event)
    again = deliver(event)
    assert (again.pk, again.updated_at) == (first.pk, first.updated_at)
    assert WebhookEvent.objects.count() == 1
    assert placed.transfers.count() == 2


def test_a_payment_of_nobody_we_know_is_ignored_at_once(deliver: Deliver, simulator: Any) -> None:
    simulator.create_charge(5000)
    row = deliver(only(events_of(simulator, "payment_intent.succeeded")))
    assert row.status == EventStatus.IGNORED
    assert "no order of ours" in row.outcome


def test_an_event_that_contradicts_the_order_leaves_no_effect_but_the_event_and_its_error(
    deliver: Deliver, simulator: Any, placed: Order
) -> None:
    simulator.create_charge(4999, metadata={"order_operation_id": str(placed.operation_id)})
    with capture_logs() as logs:
        row = deliver(only(events_of(simulator, "payment_intent.succeeded")))
    placed.refresh_from_db()
    assert (placed.status, placed.transfers.count()) == (OrderStatus.PENDING, 0)
    assert (row.status, row.last_error_code, row.retry_count) == (EventStatus.FAILED, "ConflictingFacts", 1)
    assert "4999 eur" in row.last_error_message
    assert row.last_error_at is not None
    assert row.outcome == row.last_error_message
    assert 54 <= seconds_until(row) <= 60
    assert "webhook_event_failed" in [entry["event"] for entry in logs if entry["log_level"] == "error"]


# --- Refunds ----------------------------------------------------------------------------------------------------------


def test_a_refund_made_in_the_dashboard_makes_every_seller_owe_in_one_transaction(
    deliver: Deliver, simulator: Any, paid: Paid
) -> None:
    order, charge = paid
    refund_id, event = succeeded(simulator, charge)
    row = deliver(event)
    refund = Refund.objects.get(stripe_refund_id=refund_id)
    order.refresh_from_db()
    assert (row.status, row.outcome) == (EventStatus.PROCESSED, f"{refund_id} is succeeded")
    assert (refund.status, refund.requested_by) == (RefundStatus.SUCCEEDED, None)
    assert (order.status, order.amount_refunded) == (OrderStatus.REFUNDED, 5000)
    for transfer in order.transfers.all():
        assert transfer.status == TransferStatus.REVERSAL_PENDING
        assert transfer.next_retry_at is not None
        assert transfer.next_retry_at <= timezone.now()
        assert transfer.reversals.get().amount == transfer.amount
    assert simulator.requests.total == 0


def test_a_refund_that_waits_owes_nothing_until_it_has_succeeded(deliver: Deliver, simulator: Any, paid: Paid) -> None:
    order, charge = paid
    refund = simulator.create_refund(charge, 1000, status="pending")
    deliver(only(events_of(simulator, "refund.created")))
    assert Refund.objects.get().status == RefundStatus.PENDING
    assert not TransferReversal.objects.exists()
    simulator.succeed_refund(refund["id"])
    for event in events_of(simulator, "refund.updated"):
        deliver(event)
    assert Refund.objects.get().status == RefundStatus.SUCCEEDED
    assert (
        sum(reversal.amount for reversal in TransferReversal.objects.all())
        == sum(transfer.amount for transfer in order.transfers.all()) * 1000 // 5000
    )


def test_a_refund_that_fails_later_takes_the_order_back(deliver: Deliver, simulator: Any, paid: Paid) -> None:
    order, charge = paid
    refund_id, event = succeeded(simulator, charge)
    deliver(event)
    simulator.fail_refund(refund_id)
    deliver(only(events_of(simulator, "refund.failed")))
    order.refresh_from_db()
    assert (order.status, Refund.objects.get().status) == (OrderStatus.PAID, RefundStatus.FAILED)


@pytest.mark.parametrize("type_", ["refund.updated", "refund.failed", "charge.refund.updated"])
def test_all_names_of_a_refunds_news_are_heard(deliver: Deliver, simulator: Any, paid: Paid, type_: str) -> None:
    refund = simulator.create_refund(paid[1], status="succeeded")
    row = deliver(simulator.emit(type_, simulator.get(refund["id"])))
    assert row.status == EventStatus.PROCESSED
    assert Refund.objects.get().status == RefundStatus.SUCCEEDED


def test_a_refunded_charge_without_its_refunds_says_nothing_new(deliver: Deliver, simulator: Any, paid: Paid) -> None:
    succeeded(simulator, paid[1])
    row = deliver(only(events_of(simulator, "charge.refunded")))
    assert row.status == EventStatus.IGNORED
    assert "carries no refund" in row.outcome
    assert not Refund.objects.exists()


def test_a_refunded_charge_of_an_older_version_brings_its_refunds(deliver: Deliver, simulator: Any, paid: Paid) -> None:
    refunds = [simulator.create_refund(paid[1], amount, status="succeeded") for amount in (1000, 500)]
    charge = simulator.get(paid[1]) | {"refunds": {"object": "list", "data": refunds}}
    row = deliver(simulator.emit("charge.refunded", charge))
    assert row.status == EventStatus.PROCESSED
    assert set(Refund.objects.values_list("amount", flat=True)) == {1000, 500}
    assert row.outcome.count("succeeded") == 2


@pytest.mark.parametrize("second", [{"currency": "usd"}, {"id": "re_" + "x" * 300}], ids=["refused", "too long"])
def test_an_event_that_fails_half_way_leaves_nothing_of_its_first_half(
    deliver: Deliver, simulator: Any, paid: Paid, second: dict[str, Any]
) -> None:
    refunds = [simulator.create_refund(paid[1], amount, status="succeeded") for amount in (1000, 500)]
    data = [refunds[0], refunds[1] | second]
    row = deliver(simulator.emit("charge.refunded", simulator.get(paid[1]) | {"refunds": {"data": data}}))
    assert row.status == EventStatus.FAILED
    assert row.next_retry_at is not None
    assert not Refund.objects.exists()
    assert not TransferReversal.objects.exists()
    assert {transfer.status for transfer in paid[0].transfers.all()} == {TransferStatus.COMPLETED}


# --- Too early --------------------------------------------------------------------------------------------------------


def test_a_refund_before_its_payment_waits_and_is_applied_with_it(
    deliver: Deliver, simulator: Any, placed: Order
) -> None:
    charge = pay(simulator, placed)
    _, event = succeeded(simulator, charge["id"])
    early = deliver(event)
    assert (early.status, early.last_error_code, early.retry_count) == (EventStatus.FAILED, "unknown_order", 1)
    assert not Refund.objects.exists()
    deliver(only(events_of(simulator, "payment_intent.succeeded")))
    early.refresh_from_db()
    placed.refresh_from_db()
    assert (early.status, early.next_retry_at) == (EventStatus.PROCESSED, None)
    assert (early.last_error_code, early.last_error_message, early.last_error_at) == ("", "", None)
    assert placed.status == OrderStatus.REFUNDED
    # Refunded before any money moved: nobody is paid.
    assert {transfer.status for transfer in placed.transfers.all()} == {TransferStatus.CANCELED}


def test_a_refund_given_up_is_applied_when_its_payment_comes_at_last(
    deliver: Deliver, simulator: Any, placed: Order
) -> None:
    charge = pay(simulator, placed)
    _, event = succeeded(simulator, charge["id"])
    early = deliver(event)
    work(rounds=10)
    early.refresh_from_db()
    assert early.status == EventStatus.IGNORED
    deliver(only(events_of(simulator, "payment_intent.succeeded")))
    early.refresh_from_db()
    assert (early.status, early.retry_count, early.last_error_code) == (EventStatus.PROCESSED, 0, "")
    assert Refund.objects.get().status == RefundStatus.SUCCEEDED


def test_a_refund_that_names_the_charge_alone_is_found_by_it(deliver: Deliver, simulator: Any, placed: Order) -> None:
    charge = pay(simulator, placed)
    refund = simulator.create_refund(charge["id"], status="succeeded")
    early = deliver(simulator.emit("refund.updated", simulator.get(refund["id"]) | {"payment_intent": None}))
    assert early.last_error_code == "unknown_order"
    deliver(only(events_of(simulator, "payment_intent.succeeded")))
    early.refresh_from_db()
    assert early.status == EventStatus.PROCESSED


def test_a_payment_without_a_charge_brings_what_waited_for_it(deliver: Deliver, simulator: Any, placed: Order) -> None:
    charge = pay(simulator, placed)
    _, refund = succeeded(simulator, charge["id"])
    early = deliver(refund)
    intent = simulator.get(charge["payment_intent"]) | {"latest_charge": None}
    deliver(simulator.emit("payment_intent.succeeded", intent))
    early.refresh_from_db()
    assert early.status == EventStatus.PROCESSED


def test_a_payment_applied_by_a_retry_brings_what_waited_for_it(
    deliver: Deliver, simulator: Any, placed: Order, gateway: Any
) -> None:
    charge = pay(simulator, placed)
    _, refund = succeeded(simulator, charge["id"])
    early = deliver(refund)
    # The payment's event meets an order of another amount at first, which somebody then mends.
    Order.objects.filter(pk=placed.pk).update(amount=4999)
    payment = deliver(only(events_of(simulator, "payment_intent.succeeded")))
    assert payment.status == EventStatus.FAILED
    Order.objects.filter(pk=placed.pk).update(amount=5000)
    make_due(pk=payment.pk)
    EventQueue(gateway).perform(only(inbox.claim(batch_size=10, lease=timedelta(minutes=5))))
    for row in (payment, early):
        row.refresh_from_db()
        assert row.status == EventStatus.PROCESSED


def test_an_early_refund_that_contradicts_its_order_does_not_harm_the_payment(
    deliver: Deliver, simulator: Any, placed: Order
) -> None:
    charge = pay(simulator, placed)
    refund = simulator.create_refund(charge["id"], status="succeeded")
    wrong = simulator.get(refund["id"]) | {"currency": "usd"}
    waiting = deliver(simulator.emit("refund.updated", wrong))
    given_up = deliver(simulator.emit("refund.created", wrong))
    WebhookEvent.objects.filter(pk=given_up.pk).update(retry_count=5)
    make_due(pk=given_up.pk)
    inbox.apply_again(only(inbox.claim(batch_size=10, lease=timedelta(minutes=5))))
    given_up.refresh_from_db()
    assert given_up.status == EventStatus.IGNORED
    payment = deliver(only(events_of(simulator, "payment_intent.succeeded")))
    assert payment.status == EventStatus.PROCESSED
    for row, retries in ((waiting, 2), (given_up, 1)):
        row.refresh_from_db()
        assert (row.status, row.last_error_code) == (EventStatus.FAILED, "ConflictingFacts")
        assert row.retry_count == retries
        assert row.next_retry_at is not None


def test_what_a_worker_holds_is_left_to_it(deliver: Deliver, simulator: Any, placed: Order) -> None:
    charge = pay(simulator, placed)
    _, event = succeeded(simulator, charge["id"])
    early = deliver(event)
    make_due()
    held = only(inbox.claim(batch_size=10, lease=timedelta(minutes=5)))
    deliver(only(events_of(simulator, "payment_intent.succeeded")))
    early.refresh_from_db()
    assert early.status == EventStatus.FAILED
    inbox.apply_again(held)
    early.refresh_from_db()
    assert early.status == EventStatus.PROCESSED


def test_what_waits_for_another_payment_goes_on_waiting(deliver: Deliver, simulator: Any, placed: Order) -> None:
    other = simulator.create_charge(700)
    _, event = succeeded(simulator, other["id"])
    early = deliver(event)
    pay(simulator, placed)
    for event in events_of(simulator, "payment_intent.succeeded"):
        deliver(event)
    early.refresh_from_db()
    assert (early.status, early.retry_count) == (EventStatus.FAILED, 1)


def test_what_failed_for_another_reason_is_not_tried_with_the_payment(
    deliver: Deliver, simulator: Any, placed: Order
) -> None:
    charge = pay(simulator, placed)
    refund = simulator.create_refund(charge["id"], status="succeeded")
    broken = deliver(simulator.emit("refund.updated", simulator.get(refund["id"]) | {"amount": None}))
    assert broken.last_error_code == "MalformedEvent"
    deliver(only(events_of(simulator, "payment_intent.succeeded")))
    broken.refresh_from_db()
    assert (broken.status, broken.retry_count) == (EventStatus.FAILED, 1)


# --- Trying again -----------------------------------------------------------------------------------------------------


def contradiction(deliver: Deliver, simulator: Any, paid: Paid) -> WebhookEvent:
    """A refund of more than the order: it fails until the order says otherwise."""
    refund = simulator.create_refund(paid[1], status="succeeded")
    return deliver(simulator.emit("refund.updated", simulator.get(refund["id"]) | {"amount": 5001}))


def test_the_worker_applies_it_once_the_cause_is_gone(
    deliver: Deliver, simulator: Any, paid: Paid, gateway: Any
) -> None:
    row = contradiction(deliver, simulator, paid)
    Order.objects.filter(pk=paid[0].pk).update(amount=5001)
    make_due()
    queue = EventQueue(gateway)
    queue.perform(only(queue.claim(batch_size=10, lease=timedelta(minutes=5))))
    row.refresh_from_db()
    assert (row.status, row.next_retry_at, row.last_error_code) == (EventStatus.PROCESSED, None, "")
    assert (row.lease_token, row.lease_expires_at) == (None, None)
    assert Refund.objects.get().status == RefundStatus.SUCCEEDED


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_so_many_retries_and_then_it_asks_for_a_person(
    deliver: Deliver, simulator: Any, paid: Paid, settings: Any, max_retries: int
) -> None:
    settings.REVERSAL_MAX_RETRIES = max_retries
    settings.REVERSAL_BACKOFF_MAX = timedelta(minutes=3)
    row = contradiction(deliver, simulator, paid)
    for retry in range(max_retries):
        row.refresh_from_db()
        assert row.retry_count == retry + 1
        longest = min(60 * 2**retry, 180)
        assert longest * 0.89 <= seconds_until(row) <= longest
        with capture_logs() as logs:
            assert work() == 1
    row.refresh_from_db()
    assert (row.status, row.next_retry_at, row.retry_count) == (EventStatus.FAILED, None, max_retries)
    assert row.last_error_code == "ConflictingFacts"
    assert (row.lease_token, row.lease_expires_at) == (None, None)
    if max_retries:
        assert "webhook_event_needs_a_person" in [entry["event"] for entry in logs]
    assert work(rounds=3) == 0


@pytest.mark.parametrize("max_retries", [0, 2])
def test_so_many_retries_and_then_an_unknown_order_is_none_of_ours(
    deliver: Deliver, simulator: Any, settings: Any, max_retries: int
) -> None:
    settings.REVERSAL_MAX_RETRIES = max_retries
    _, event = succeeded(simulator, simulator.create_charge(700)["id"])
    row = deliver(event)
    assert work(rounds=max_retries + 2) == max_retries
    row.refresh_from_db()
    assert (row.status, row.next_retry_at, row.retry_count) == (EventStatus.IGNORED, None, max_retries)
    assert row.outcome.startswith("no order of ours appeared")
    assert row.last_error_code == "unknown_order"


def test_an_event_not_yet_due_is_not_claimed(db: None) -> None:
    WebhookEventFactory(failed=True, next_retry_at=timezone.now() + timedelta(minutes=1))
    WebhookEventFactory(given_up=True)
    WebhookEventFactory()
    assert inbox.claim(batch_size=10, lease=timedelta(minutes=5)) == []


def test_a_worker_whose_lease_was_lost_changes_nothing(deliver: Deliver, simulator: Any, paid: Paid) -> None:
    contradiction(deliver, simulator, paid)
    make_due()
    late = only(inbox.claim(batch_size=10, lease=timedelta(0)))
    newer = only(inbox.claim(batch_size=10, lease=timedelta(minutes=5)))
    Order.objects.filter(pk=paid[0].pk).update(amount=5001)
    with pytest.raises(StaleTransition):
        inbox.apply_again(late)
    assert not Refund.objects.exists()
    assert inbox.apply_again(newer).status == EventStatus.PROCESSED


# --- Connected accounts -----------------------------------------------------------------------------------------------


def account_event(simulator: Any, account: dict[str, Any], **changes: Any) -> Event:
    made: Event = simulator.emit("account.updated", simulator.get(account["id"]) | changes, account=account["id"])
    return made


@pytest.fixture
def account(simulator: Any) -> Any:
    simulator.clock.freeze()
    return simulator.create_account()


def test_what_stripe_says_of_a_sellers_account_is_kept(deliver: Deliver, simulator: Any, account: Any) -> None:
    seller = SellerFactory(stripe_account_id=account["id"])
    event = account_event(simulator, account, payouts_enabled=False, capabilities={"transfers": "inactive"})
    row = deliver(event)
    seller.refresh_from_db()
    assert (row.status, row.stripe_account_id) == (EventStatus.PROCESSED, account["id"])
    assert (seller.transfers_capability, seller.payouts_enabled) == ("inactive", False)
    assert seller.stripe_seen_at == row.stripe_created_at


def test_older_news_of_an_account_does_not_undo_newer(deliver: Deliver, simulator: Any, account: Any) -> None:
    seller = SellerFactory(stripe_account_id=account["id"])
    older = account_event(simulator, account, capabilities={"transfers": "pending"})
    simulator.clock.advance(1)
    newer = account_event(simulator, account, capabilities={"transfers": "inactive"})
    deliver(newer)
    row = deliver(older)
    seller.refresh_from_db()
    assert (row.status, seller.transfers_capability) == (EventStatus.IGNORED, "inactive")
    assert "we know newer" in row.outcome


@pytest.mark.parametrize("turned", [False, True])
def test_of_the_same_second_the_capability_further_along_stands_in_any_order(
    deliver: Deliver, simulator: Any, account: Any, turned: bool
) -> None:
    seller = SellerFactory(stripe_account_id=account["id"])
    events = [
        account_event(simulator, account, capabilities={"transfers": capability}, payouts_enabled=enabled)
        for capability, enabled in (("pending", True), ("active", False), ("active", True), ("inactive", True))
    ]
    for event in reversed(events) if turned else events:
        deliver(event)
    seller.refresh_from_db()
    assert (seller.transfers_capability, seller.payouts_enabled) == ("active", True)


def test_the_same_word_again_is_up_to_date(deliver: Deliver, simulator: Any, account: Any) -> None:
    SellerFactory(stripe_account_id=account["id"])
    rows = [deliver(account_event(simulator, account)) for _ in range(2)]
    assert [row.status for row in rows] == [EventStatus.PROCESSED] * 2


def test_news_of_an_account_that_is_no_sellers_is_ignored(deliver: Deliver, simulator: Any, account: Any) -> None:
    SellerFactory(stripe_seen_at=None)
    assert deliver(account_event(simulator, account)).status == EventStatus.IGNORED
    assert Seller.objects.get().stripe_seen_at is None


def test_a_capability_that_stripe_does_not_document_is_kept_as_failed(
    deliver: Deliver, simulator: Any, account: Any
) -> None:
    SellerFactory(stripe_account_id=account["id"])
    row = deliver(account_event(simulator, account, capabilities={"transfers": "levitating"}))
    assert (row.status, row.last_error_code) == (EventStatus.FAILED, "MalformedEvent")
    assert Seller.objects.get().transfers_capability == "active"
    facts = AccountFacts(
        stripe_account_id=account["id"],
        transfers_capability="levitating",
        payouts_enabled=True,
        seen_at=timezone.now(),
    )
    with pytest.raises(MalformedEvent, match="'levitating' is unknown"):
        sellers.record(facts)


def test_a_seller_who_disconnects_is_remembered_since_the_first_time(
    deliver: Deliver, simulator: Any, account: Any
) -> None:
    seller = SellerFactory(stripe_account_id=account["id"])
    application = {"id": "ca_1", "object": "application", "name": "Veza"}
    first, second = (
        simulator.emit("account.application.deauthorized", application, account=account["id"]) for _ in range(2)
    )
    second = second | {"created": first["created"] + 60}
    with capture_logs() as logs:
        assert deliver(second).status == EventStatus.PROCESSED
    assert "seller_deauthorized" in [entry["event"] for entry in logs]
    assert deliver(first).status == EventStatus.PROCESSED
    seller.refresh_from_db()
    assert seller.deauthorized_at is not None
    assert seller.deauthorized_at.timestamp() == first["created"]
    third = simulator.emit("account.application.deauthorized", application, account=account["id"])
    row = deliver(third | {"created": first["created"] + 120})
    assert (row.status, row.outcome) == (EventStatus.IGNORED, f"{account['id']} is no connected seller of ours")


@pytest.mark.parametrize("type_", ["payment_intent.succeeded", "refund.updated"])
def test_a_sellers_own_business_is_not_ours(
    deliver: Deliver, simulator: Any, account: Any, paid: Paid, type_: str
) -> None:
    refund = simulator.create_refund(paid[1], status="succeeded")
    row = deliver(simulator.emit(type_, simulator.get(refund["id"]), account=account["id"]))
    assert (row.status, row.outcome) == (EventStatus.IGNORED, "this type is used for our own account only")
    assert not Refund.objects.exists()


def test_news_of_our_own_account_is_not_a_sellers(deliver: Deliver, simulator: Any, account: Any) -> None:
    SellerFactory(stripe_account_id=account["id"])
    row = deliver(simulator.emit("account.updated", simulator.get(account["id"])))
    assert (row.status, row.outcome) == (EventStatus.IGNORED, "this type is used for connected accounts only")


# --- Odd events -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["customer.created", "refund.succeeded", "transfer.paid", "no type of Stripe's"])
def test_other_types_are_stored_and_ignored(deliver: Deliver, simulator: Any, type_: str) -> None:
    row = deliver(simulator.emit(type_, {"id": "x_1", "object": "x"}))
    assert (row.status, row.outcome) == (EventStatus.IGNORED, "this type is not used")


@pytest.mark.parametrize(
    ("type_", "change"),
    [
        ("refund.updated", {"id": None}),
        ("refund.updated", {"amount": "5000"}),
        ("refund.updated", {"amount": -5}),
        ("refund.updated", {"amount": 2**63}),
        ("refund.updated", {"status": 7}),
        ("refund.updated", {"status": "levitating"}),
        ("refund.updated", {"metadata": ["x"]}),
        ("refund.updated", {"payment_intent": 7}),
        ("charge.refunded", {"refunds": {"data": "re_1"}}),
        ("charge.refunded", {"refunds": ["re_1"]}),
        ("payment_intent.succeeded", {"amount_received": None}),
        ("payment_intent.succeeded", {"currency": ""}),
        ("account.updated", {"capabilities": ["transfers"]}),
        ("account.updated", {"payouts_enabled": "yes"}),
        ("payment_intent.succeeded", {"metadata": {"order_operation_id": {}}}),
    ],
)
def test_an_object_of_an_unexpected_shape_is_kept_as_malformed(
    deliver: Deliver, simulator: Any, paid: Paid, type_: str, change: dict[str, Any]
) -> None:
    refund = simulator.create_refund(paid[1], status="succeeded")
    account = simulator.create_account()["id"] if type_ == "account.updated" else None
    row = deliver(simulator.emit(type_, simulator.get(account or refund["id"]) | change, account=account))
    assert (row.status, row.last_error_code) == (EventStatus.FAILED, "MalformedEvent")
    assert not Refund.objects.exists()
    assert SellerTransfer.objects.filter(status=TransferStatus.COMPLETED).count() == 2


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\x00b", "a\ufffdb"),
        ("\x00\x00", "\ufffd\ufffd"),
        ("a\\u0000b", "a\\u0000b"),
        ("a\\\x00b", "a\\\ufffdb"),
        ("a\\\\u0000b", "a\\\\u0000b"),
        ("\ud800", "\ufffd"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\x00\ude00", "\ufffd\ufffd\ufffd"),
        ("\U0001f600 and \ue000", "\U0001f600 and \ue000"),
        ("\\ud800", "\\ud800"),
        ('"\\"\x00\n\t', '"\\"\ufffd\n\t'),
    ],
)
def test_characters_that_the_database_cannot_hold_are_replaced_and_no_others(
    deliver: Deliver, simulator: Any, text: str, stored: str
) -> None:
    event = simulator.emit("customer.created", {"id": "cus_1"})
    event["data"]["object"] |= {"name": text, "metadata": {text: [text]}}
    row = deliver(event)
    assert row.payload["data"]["object"] == {"id": "cus_1", "name": stored, "metadata": {stored: [stored]}}


def test_a_refund_with_a_nul_in_its_text_is_applied(deliver: Deliver, simulator: Any, paid: Paid) -> None:
    refund = simulator.create_refund(paid[1], status="succeeded")
    described = simulator.get(refund["id"]) | {"failure_reason": "no\x00ne", "metadata": {"note": "\x00"}}
    assert deliver(simulator.emit("refund.updated", described)).status == EventStatus.PROCESSED


@pytest.mark.parametrize("number", [2**63, 10**300, 1.5e-7, -1.5, 10**4000])
def test_numbers_of_any_size_are_stored(deliver: Deliver, simulator: Any, number: float) -> None:
    event = simulator.emit("customer.created", {"id": "cus_1"})
    event["data"]["object"] = {"number": number}
    assert deliver(event).payload["data"]["object"] == {"number": number}


def test_a_number_that_only_postgresql_takes_for_one_is_stored_as_we_read_it(db: None, simulator: Any) -> None:
    """As text it would be refused: PostgreSQL knows no number that small."""
    event = simulator.emit("customer.created", {"id": "cus_1"})
    event["data"]["object"] = {"number": 0.25}
    text = json.dumps(event).replace("0.25", "1e-99999")
    assert inbox.receive(stripe_events.verify(*simulator.sign(text.encode(), SECRET))).pk
    assert WebhookEvent.objects.get().payload["data"]["object"] == {"number": 0}


def test_what_is_verified_can_be_stored(verified: Callable[[Event], stripe_events.IncomingEvent], db: None) -> None:
    longest = WebhookEventFactory.build(
        stripe_event_id="evt_" + "x" * 251, type="t" * 255, api_version="v" * 100
    ).payload | {"account": "a" * 255}
    row = inbox.receive(verified(longest))
    assert (len(row.stripe_event_id), len(row.type), len(row.stripe_account_id)) == (255, 255, 255)
