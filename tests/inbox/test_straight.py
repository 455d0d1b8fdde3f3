"""Straight ahead or step by step, together or one by one: an event ends in the same rows, history and notifications."""

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from marketplace import inbox
from marketplace.errors import StaleTransition
from marketplace.gateway import stripe_events
from marketplace.gateway.contract import ReversalFacts, Reversed
from marketplace.models import Order, Refund, SellerTransfer, TransferReversal, WebhookEvent, together
from marketplace.services import refund_records, reversal_claims, reversal_settling
from marketplace.states import EventStatus, OrderStatus, RefundStatus, ReversalStatus, TransferStatus
from tests.conftest import plain_parameters
from tests.death.processes import wait_until
from tests.factories import RefundFactory, order_with_items, order_with_transfers
from tests.inbox.conftest import SECRET, Event, events_of, only, pay
from tests.inbox.test_any_order import rolled_back
from tests.inbox.test_database_trouble import elsewhere

Verified = Callable[[Event], stripe_events.IncomingEvent]
LEASE = timedelta(minutes=5)


# --- As few messages as that ------------------------------------------------------------------------------------------


@pytest.fixture
def order(transactional_db: None, simulator: Any) -> Order:
    """Of 5000 over two sellers, who have their money; and its charge at Stripe."""
    charge = simulator.create_charge(5000)
    return order_with_transfers(
        (3000, 2000), stripe_charge_id=charge["id"], stripe_payment_intent_id=charge["payment_intent"]
    )


def refunded(simulator: Any, order: Order, amount: int | None = None, **how: Any) -> Event:
    refund = simulator.create_refund(order.stripe_charge_id, amount, **{"status": "succeeded", **how})
    event: Event = only(events_of(simulator, "refund.created", refund["id"]))
    return event


def messages(act: Callable[[], Any]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        act()
    sent = [query["sql"] for query in captured.captured_queries]
    if sent[1].startswith("BEGIN; "):
        # What Django notes when a transaction begins goes with what is sent first.
        assert sent.pop(0) == "BEGIN"
    if sent[-2].endswith("COMMIT"):
        # And what it notes at the end, with what is sent last.
        assert sent.pop() == "COMMIT"
    return sent


def test_a_refund_made_in_the_dashboard_is_two_messages_however_many_sellers(
    order: Order, verified: Verified, simulator: Any
) -> None:
    event = verified(refunded(simulator, order))
    sent = messages(lambda: inbox.receive(event))
    assert len(sent) == 2, "\n\n".join(sent)
    # The history of an event begins when somebody replays it: there is nobody to name before.
    assert sent[0].startswith("BEGIN; INSERT INTO marketplace_webhookevent")
    assert sent[-1].endswith("; COMMIT")
    assert order.transfers.filter(status=TransferStatus.REVERSAL_PENDING).count() == 2


@pytest.mark.parametrize(("name", "as_it_came"), [("größer", True), ("a\\u00e9b", False)])
def test_the_event_is_stored_from_the_very_text_that_was_signed(
    order: Order, simulator: Any, name: str, as_it_came: bool
) -> None:
    """What has an escape in it is written anew, for it may be one that PostgreSQL refuses."""
    event = json.dumps(refunded(simulator, order) | {"pad": "-"}, indent=4).replace('"-"', f'"{name}"')
    signed = simulator.sign(event.encode(), SECRET)
    sent = messages(lambda: inbox.receive(stripe_events.verify(*signed)))
    # As a literal is written.
    as_literal = event.replace("\\", "\\\\").replace("'", "''")
    assert (as_literal in sent[0]) == as_it_came
    assert WebhookEvent.objects.get().payload == json.loads(event)


def test_a_refund_that_we_asked_for_is_two_messages(order: Order, verified: Verified, simulator: Any) -> None:
    asked = RefundFactory(order=order, amount=5000)
    event = verified(refunded(simulator, order, metadata={"operation_id": str(asked.operation_id)}))
    assert len(messages(lambda: inbox.receive(event))) == 2
    asked.refresh_from_db()
    assert asked.status == RefundStatus.SUCCEEDED


def test_what_is_known_of_a_refund_is_two_messages(order: Order, verified: Verified, simulator: Any) -> None:
    event = refunded(simulator, order)
    inbox.receive(verified(event))
    # Of the same second, whatever the machine's pace: a later one would be written down.
    again = verified(simulator.emit("refund.updated", event["data"]["object"]) | {"created": event["created"]})
    # The event with the question, COMMIT.
    assert len(messages(lambda: inbox.receive(again))) == 2


def test_an_event_of_no_use_is_two_messages(order: Order, verified: Verified, simulator: Any) -> None:
    event = verified(simulator.emit("customer.created", {"id": "cus_1", "object": "customer"}))
    assert len(messages(lambda: inbox.receive(event))) == 2


# --- Any way --------------------------------------------------------------------------------------------------------

Story = Callable[[Any], tuple[Order, list[Event]]]


def paid_order(simulator: Any, amounts: tuple[int, ...] = (3000, 2000), **how: Any) -> Order:
    charge = simulator.create_charge(sum(amounts))
    return order_with_transfers(
        amounts, stripe_charge_id=charge["id"], stripe_payment_intent_id=charge["payment_intent"], **how
    )


def told(*steps: Callable[[Any, Order], Event], amounts: tuple[int, ...] = (3000, 2000), **how: Any) -> Story:
    def story(simulator: Any) -> tuple[Order, list[Event]]:
        order = paid_order(simulator, amounts, **how)
        return order, [step(simulator, order) for step in steps]

    return story


def changed(**changes: Any) -> Callable[[Any, Order], Event]:
    """An event of a refund that says something else than Stripe's own would."""

    def step(simulator: Any, order: Order) -> Event:
        event = refunded(simulator, order, 1000)
        body = {**event["data"]["object"], **changes}
        made: Event = simulator.emit("refund.updated", body)
        return made

    return step


def of(amount: int, **how: Any) -> Callable[[Any, Order], Event]:
    return lambda simulator, order: refunded(simulator, order, amount, **how)


def asked_by_us(simulator: Any, order: Order) -> Event:
    asked = RefundFactory(order=order, amount=1000)
    return refunded(simulator, order, 1000, metadata={"operation_id": str(asked.operation_id)})


def paid_after_its_refund(simulator: Any) -> tuple[Order, list[Event]]:
    order = order_with_items((3000, 2000))
    charge = pay(simulator, order)
    refund = simulator.create_refund(charge["id"], status="succeeded")
    early = only(events_of(simulator, "refund.created", refund["id"]))
    return order, [early, only(events_of(simulator, "payment_intent.succeeded", charge["payment_intent"]))]


def older_endpoint(simulator: Any) -> tuple[Order, list[Event]]:
    """Of two refunds in one event the second contradicts our order: nothing of the first may stay."""
    order = paid_order(simulator)
    first = refunded(simulator, order, 1000)["data"]["object"]
    second = {**first, "id": "re_other", "amount": 9000}
    charge = {"id": order.stripe_charge_id, "object": "charge", "refunds": {"data": [first, second]}}
    return order, [simulator.emit("charge.refunded", charge)]


STORIES: dict[str, Story] = {
    "all of it": told(of(5000)),
    "a part": told(of(1234)),
    "two parts and the rest": told(of(1), of(2499), of(2500), amounts=(3333, 1667)),
    "asked for by us": told(asked_by_us),
    "by its charge": told(changed(payment_intent=None)),
    "pending": told(of(1000, status="pending")),
    "failed": told(changed(status="failed", failure_reason="declined", id="re_failed")),
    "requires action": told(changed(status="requires_action", id="re_action")),
    "not sent yet": told(of(5000), status="pending"),
    "not sent yet, a part": told(of(1000), status="pending"),
    "already owing": told(of(1000), status="reversal_pending"),
    "partly reversed": told(of(5000), status="partially_reversed"),
    "needs a person": told(of(1000), status="permanently_failed"),
    "not paid to the seller": told(of(1000), status="permanently_failed_sending"),
    "canceled": told(of(5000), status="canceled"),
    "another currency": told(changed(currency="usd", id="re_usd")),
    "another amount": told(of(1000), changed(amount=999)),
    "more than the order": told(changed(amount=9999, id="re_much")),
    "a status of no refund": told(changed(status="requested", id="re_word")),
    "no order": told(changed(payment_intent="pi_no", charge="ch_no", id="re_no")),
    "no shape": told(changed(amount="a lot")),
    "before its payment": paid_after_its_refund,
    "one of two contradicts": older_endpoint,
    "no use": told(lambda simulator, _: simulator.emit("customer.created", {"id": "cus_1", "object": "customer"})),
}


MODELS = (Order, Refund, SellerTransfer, TransferReversal, WebhookEvent)
# Drawn by lot.
RANDOM = {"operation_id", "lease_token"}


def all_rows() -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Every row with its history; of a time only whether there is one, where it is one of our own clock."""
    # An event that is begun anew gets another number.
    own = {WebhookEvent: {"id"}}

    def shown(row: Any) -> dict[str, Any]:
        values = {
            name: value
            for name, value in vars(row).items()
            if not name.startswith("_") and name not in RANDOM | own.get(type(row), set())
        }
        stripes = {"succeeded_at", "stripe_seen_at", "stripe_created_at", "paid_at"}
        return {
            name: value is not None if name.endswith("_at") and name not in stripes else value
            for name, value in values.items()
        }

    return [
        (
            model.__name__,
            shown(row),
            [shown(line) for line in row.history.order_by("pgh_id")] if hasattr(row, "history") else [],
        )
        for model in MODELS
        for row in model._default_manager.order_by("pk")
    ]


def restart_numbers() -> None:
    """Taken back with the transaction, so that each way gives new rows the same numbers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT sequencename FROM pg_sequences WHERE sequencename LIKE 'marketplace_%'")
        for (name,) in cursor.fetchall():
            cursor.execute(f"ALTER SEQUENCE {name} RESTART WITH 100000")


def must_not_be_straight(*_: Any, **__: Any) -> Any:
    raise RuntimeError("as after any error")


WAYS: dict[str, list[tuple[Any, str, Any]]] = {
    "straight ahead": [],
    "step by step": [(inbox, "_apply_straight", must_not_be_straight)],
    "each write in a message of its own": [
        (together, "written_together", nullcontext),
        (together, "committed_together", lambda: transaction.atomic(durable=True)),
    ],
}


@pytest.mark.django_db
@pytest.mark.parametrize("story", STORIES)
def test_any_way_ends_in_the_same_rows_with_the_same_history(
    story: str, verified: Verified, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, events = STORIES[story](simulator)
    ends = {}
    for way, patches in WAYS.items():
        with rolled_back(), monkeypatch.context() as patched:
            restart_numbers()
            for module, name, instead in patches:
                patched.setattr(module, name, instead)
            for event in events:
                inbox.receive(verified(event))
            ends[way] = all_rows()
    first, *others = ends.values()
    for other in others:
        assert other == first
    assert len([kind for kind, _, _ in first if kind == "WebhookEvent"]) == len(events)


# --- What goes wrong on the way -------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("error", [IntegrityError("a constraint"), StaleTransition("moved"), KeyError("a bug")])
def test_an_error_straight_ahead_takes_all_back_and_the_event_is_applied_step_by_step(
    error: Exception, verified: Verified, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = paid_order(simulator)
    original, calls = refund_records._update_order, []

    def fails_once(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        calls.append(args)
        if len(calls) == 1:
            raise error

    monkeypatch.setattr(refund_records, "_update_order", fails_once)
    row = inbox.receive(verified(refunded(simulator, order)))
    assert (row.status, len(calls)) == (EventStatus.PROCESSED, 2)
    assert WebhookEvent.objects.count() == Refund.objects.count() == 1
    assert [transfer.reversals.count() for transfer in order.transfers.all()] == [1, 1]


@pytest.mark.django_db
def test_an_event_that_came_again_between_both_ways_is_there_once(verified: Verified, simulator: Any) -> None:
    event = verified(refunded(simulator, paid_order(simulator)))
    patched = pytest.MonkeyPatch()
    patched.setattr(inbox, "_apply_straight", must_not_be_straight)

    def other_delivery(*_: Any, **__: Any) -> None:
        patched.undo()
        inbox.receive(event)

    # Called between the two.
    patched.setattr(inbox.logger, "debug", other_delivery, raising=False)
    assert inbox.receive(event).status == EventStatus.PROCESSED
    assert WebhookEvent.objects.count() == Refund.objects.count() == 1


# --- At once ----------------------------------------------------------------------------------------------------------


def at_once(*acts: Callable[[], Any]) -> list[BaseException]:
    together_now = threading.Barrier(len(acts))
    errors: list[BaseException] = []

    def run(act: Callable[[], Any]) -> None:
        try:
            together_now.wait(timeout=20)
            act()
        except BaseException as error:  # noqa: BLE001 - given to the test
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=[act]) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def test_deliveries_of_one_refund_at_once_apply_it_once(
    order: Order, unblocked_database: None, verified: Verified, simulator: Any
) -> None:
    event = verified(refunded(simulator, order))
    assert at_once(*[lambda: inbox.receive(event)] * 4) == []
    assert WebhookEvent.objects.count() == Refund.objects.count() == 1
    assert [transfer.reversals.count() for transfer in order.transfers.all()] == [1, 1]


def test_refunds_of_one_order_at_once_owe_their_sum(
    order: Order, unblocked_database: None, verified: Verified, simulator: Any
) -> None:
    events = [verified(refunded(simulator, order, 1000)) for _ in range(5)]
    assert at_once(*[lambda event=event: inbox.receive(event) for event in events]) == []  # type: ignore[misc]
    order.refresh_from_db()
    assert (order.status, order.amount_refunded) == (OrderStatus.REFUNDED, 5000)
    for transfer in order.transfers.all():
        assert sum(reversal.amount for reversal in transfer.reversals.all()) == transfer.amount


def test_a_refund_beside_the_settles_of_the_same_transfers_loses_no_debt_and_locks_nobody_out(
    order: Order, unblocked_database: None, verified: Verified, simulator: Any
) -> None:
    for number in range(5):
        inbox.receive(verified(refunded(simulator, order, 500)))
        held = reversal_claims.claim(batch_size=10, lease=LEASE)
        assert len(held) == 2
        event = verified(refunded(simulator, order, 500))

        def settle(claimed: reversal_claims.Claimed, number: int = number) -> Callable[[], Any]:
            facts = ReversalFacts(
                stripe_reversal_id=f"trr_{number}_{claimed.reversal.pk}",
                amount=claimed.reversal.amount,
                currency=claimed.reversal.currency,
                operation_id=str(claimed.reversal.operation_id),
            )
            return lambda: reversal_settling.settle(claimed, Reversed(reversal=facts), actor="a worker")

        assert at_once(lambda event=event: inbox.receive(event), *map(settle, held)) == []  # type: ignore[misc]
        for claimed in reversal_claims.claim(batch_size=10, lease=LEASE):
            settle(claimed)()
    order.refresh_from_db()
    assert order.status == OrderStatus.REFUNDED
    for transfer in order.transfers.all():
        assert (transfer.status, transfer.amount_reversed) == (TransferStatus.REVERSED, transfer.amount)
        assert set(transfer.reversals.values_list("status", flat=True)) == {ReversalStatus.SUCCEEDED}


def test_a_debt_that_is_written_while_a_refund_waits_for_the_transfer_is_seen(
    order: Order, unblocked_database: None, verified: Verified, simulator: Any
) -> None:
    event = verified(refunded(simulator, order))
    transfer = order.transfers.get(amount=3000)
    with psycopg.connect(**plain_parameters()) as session, psycopg.connect(**plain_parameters()) as watch:
        watch.autocommit = True
        session.execute("UPDATE marketplace_sellertransfer SET updated_at = now() WHERE id = %s", [transfer.pk])
        thread = elsewhere(lambda: inbox.receive(event))
        waiting = "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = %s"
        wait_until(
            lambda: watch.execute(waiting, [plain_parameters()["dbname"]]).fetchone() is not None, "the refund to wait"
        )
        session.execute(
            """
            INSERT INTO marketplace_transferreversal (
                status, transfer_id, cause, amount, currency, operation_id, key_generation, look_first,
                stripe_reversal_id, stripe_status
            ) VALUES ('pending', %s, 'operator', 1000, 'eur', gen_random_uuid(), 1, false, '', '')
            """,
            [transfer.pk],
        )
        session.commit()
        thread.join(20)
    assert sorted(transfer.reversals.values_list("amount", flat=True)) == [1000, 2000]


@pytest.mark.django_db
def test_while_the_database_is_away_nothing_is_tried_twice(
    verified: Verified, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    event, tries = verified(refunded(simulator, paid_order(simulator))), []

    def away(*_: Any, **__: Any) -> Any:
        tries.append(1)
        raise OperationalError("away")

    monkeypatch.setattr(inbox, "_store", away)
    with pytest.raises(OperationalError):
        inbox.receive(event)
    assert len(tries) == 1
