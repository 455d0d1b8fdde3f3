"""A person has an event applied once more that failed or was ignored."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.models.functions import Now
from structlog.testing import capture_logs

from marketplace import inbox
from marketplace.errors import NotAllowedNow
from marketplace.models import Order, SellerTransfer, WebhookEvent
from marketplace.states import EventStatus, OrderStatus, TransferStatus
from tests.factories import WebhookEventFactory, order_with_transfers
from tests.inbox.conftest import Event, events_of, only, pay, work
from tests.services.test_confirmation import PATIENCE, wait_until_blocked

Deliver = Callable[[Event], WebhookEvent]
Paid = tuple[Order, str]


def replay(row: WebhookEvent, reason: str = "mended") -> WebhookEvent:
    inbox.replay(event_id=row.pk, actor="user:ada", reason=reason)
    return WebhookEvent.objects.get(pk=row.pk)


def history(row: WebhookEvent) -> list[tuple[str, str, str]]:
    """(status, actor, reason), oldest first."""
    entries = row.history.order_by("pgh_id").values_list("status", "pgh_context")
    return [(status, context["actor"], context["reason"]) for status, context in entries]


@pytest.fixture
def failed(deliver: Deliver, simulator: Any, placed: Order) -> WebhookEvent:
    """A payment of another amount than its order's, given up."""
    Order.objects.filter(pk=placed.pk).update(amount=4999)
    pay(simulator, placed)
    row = deliver(only(events_of(simulator, "payment_intent.succeeded")))
    assert row.status == EventStatus.FAILED
    WebhookEvent.objects.filter(pk=row.pk).update(next_retry_at=None, retry_count=5)
    row.refresh_from_db()
    return row


@pytest.fixture
def mended(failed: WebhookEvent, placed: Order) -> WebhookEvent:
    """The same, and the order has its amount again."""
    Order.objects.filter(pk=placed.pk).update(amount=5000)
    return failed


def test_what_failed_is_applied_now_and_says_who_wanted_it(mended: WebhookEvent, placed: Order) -> None:
    with capture_logs() as logs:
        row = replay(mended)
    placed.refresh_from_db()
    assert (row.status, row.outcome) == (EventStatus.PROCESSED, f"order {placed.pk} is paid")
    assert (row.replay_count, row.retry_count, row.next_retry_at) == (1, 0, None)
    assert (row.last_error_code, row.last_error_at) == ("", None)
    assert (placed.status, placed.transfers.count()) == (OrderStatus.PAID, 2)
    assert history(row) == [("processed", "user:ada", "mended"), ("processed", "inbox", f"order {placed.pk} is paid")]
    (said,) = [entry for entry in logs if entry["event"] == "webhook_event_replayed"]
    assert (said["event_id"], said["status"], said["actor"]) == (row.stripe_event_id, "processed", "user:ada")


def test_what_fails_again_has_a_fresh_budget_and_both_in_its_history(failed: WebhookEvent) -> None:
    row = replay(failed)
    assert (row.status, row.last_error_code, row.retry_count) == (EventStatus.FAILED, "ConflictingFacts", 1)
    assert row.next_retry_at is not None
    assert [entry[:2] for entry in history(row)] == [("processed", "user:ada"), ("failed", "inbox")]
    assert row.history.latest("pgh_id").last_error_message == row.last_error_message
    again = replay(row, "once more")
    assert (again.replay_count, again.retry_count, again.history.count()) == (2, 1, 4)


def test_what_was_ignored_because_its_type_was_not_used_is_applied_once_it_is(
    deliver: Deliver, simulator: Any, paid: Paid, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, charge = paid
    refund = simulator.create_refund(charge, status="succeeded")
    event = only(events_of(simulator, "refund.created", refund["id"]))
    with monkeypatch.context() as before:
        before.setattr(inbox, "HANDLERS", {})
        row = deliver(event)
        assert (row.status, row.outcome) == (EventStatus.IGNORED, "this type is not used")
        assert replay(row).status == EventStatus.IGNORED
    row = replay(row)
    assert (row.status, row.outcome) == (EventStatus.PROCESSED, f"{refund['id']} is succeeded")
    assert [transfer.status for transfer in order.transfers.all()] == [TransferStatus.REVERSAL_PENDING] * 2
    assert [entry[:2] for entry in history(row)] == [
        ("processed", "user:ada"),
        ("ignored", "inbox"),
        ("processed", "user:ada"),
    ]


def test_a_refund_that_was_given_up_without_its_order_is_ignored_no_more(
    deliver: Deliver, simulator: Any, settings: Any
) -> None:
    settings.REVERSAL_MAX_RETRIES = 0
    charge = simulator.create_charge(5000)
    refund = simulator.create_refund(charge["id"], status="succeeded")
    row = deliver(only(events_of(simulator, "refund.created", refund["id"])))
    assert (row.status, row.last_error_code) == (EventStatus.IGNORED, inbox.UNKNOWN_ORDER)
    order_with_transfers((3000, 2000), stripe_charge_id=charge["id"], stripe_payment_intent_id=charge["payment_intent"])
    row = replay(row)
    assert (row.status, row.last_error_code) == (EventStatus.PROCESSED, "")


def test_what_was_applied_is_refused_and_stays(deliver: Deliver, simulator: Any, placed: Order) -> None:
    pay(simulator, placed)
    row = deliver(only(events_of(simulator, "payment_intent.succeeded")))
    with pytest.raises(NotAllowedNow, match=f"{row} is processed: only one that failed or was ignored"):
        replay(row)
    row.refresh_from_db()
    assert (row.replay_count, row.history.count(), SellerTransfer.objects.count()) == (0, 0, 2)


@pytest.mark.parametrize(("minutes", "is_refused"), [(5, True), (-5, False)])
def test_what_a_worker_has_in_hand_is_refused_unless_its_lease_has_ended(
    mended: WebhookEvent, minutes: int, is_refused: bool
) -> None:
    WebhookEvent.objects.filter(pk=mended.pk).update(next_retry_at=Now())
    (claimed,) = inbox.claim(batch_size=1, lease=timedelta(minutes=5))
    WebhookEvent.objects.filter(pk=mended.pk).update(lease_expires_at=Now() + timedelta(minutes=minutes))
    if is_refused:
        with pytest.raises(NotAllowedNow, match="in a worker's hands"):
            replay(mended)
        assert WebhookEvent.objects.get(pk=mended.pk).lease_token == claimed.lease_token
    else:
        assert replay(mended).lease_token is None


def test_before_a_replay_an_event_has_no_history(failed: WebhookEvent) -> None:
    assert work() == 0
    WebhookEvent.objects.filter(pk=failed.pk).update(next_retry_at=Now())
    assert work() == 1
    assert failed.history.count() == 0


def test_after_one_its_further_tries_are_in_the_history(failed: WebhookEvent, placed: Order) -> None:
    row = replay(failed)
    Order.objects.filter(pk=placed.pk).update(amount=5000)
    assert work() == 1
    assert [entry[:2] for entry in history(row)] == [
        ("processed", "user:ada"),
        ("failed", "inbox"),
        ("processed", "inbox"),
    ]


def test_an_event_is_told_apart_from_one_that_was_there(verified: Any, simulator: Any, placed: Order) -> None:
    pay(simulator, placed)
    event = verified(only(events_of(simulator, "payment_intent.succeeded")))
    assert [inbox.receive(event).was_there for _ in range(2)] == [False, True]


@pytest.mark.django_db(transaction=True)
def test_of_two_at_once_one_is_done_and_the_other_refused(unblocked_database: None) -> None:
    row = WebhookEventFactory(failed=True, type="refund.created", data_object={"id": "re_1", "object": "refund"})
    WebhookEvent.objects.filter(pk=row.pk).update(type="charge.refunded")
    refused: list[NotAllowedNow] = []

    def second() -> None:
        try:
            replay(row)
        except NotAllowedNow as refusal:
            refused.append(refusal)
        finally:
            connections.close_all()

    thread = threading.Thread(target=second)
    with transaction.atomic():
        held = WebhookEvent.locked(row.pk)
        thread.start()
        wait_until_blocked()
        held.transition(EventStatus.PROCESSED, actor="user:bob", reason="first", replay_count=1)
    thread.join(PATIENCE)
    assert [type(each) for each in refused] == [NotAllowedNow]
    assert history(row) == [("processed", "user:bob", "first")]
