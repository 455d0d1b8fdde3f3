"""Disputes as Stripe tells of them: the simulator's events, signed, in any order, before and after the payment."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from marketplace.models import Dispute, Order, TransferReversal, WebhookEvent
from marketplace.states import EventStatus
from tests.factories import order_with_transfers
from tests.inbox.conftest import Event, only, pay, work
from tests.inbox.test_any_order import FOR_LONG, money_of, rolled_back, sellers_of

Deliver = Callable[[Event], WebhookEvent]
Paid = tuple[Order, str]


def taken(order: Order) -> int:
    owed = TransferReversal.objects.filter(transfer__order=order).exclude(status="canceled")
    return sum(each.amount - each.unwanted_amount for each in owed)


def told_of(simulator: Any, dispute: Event) -> list[Event]:
    found: list[Event] = simulator.events(object=dispute["id"])
    return found


def test_a_chargeback_is_taken_from_the_sellers_and_a_win_dropped(deliver: Deliver, simulator: Any, paid: Paid) -> None:
    order, charge = paid
    opened = simulator.open_dispute(charge)
    created, withdrawn = told_of(simulator, opened)
    assert deliver(created).outcome == f"{opened['id']} is needs_response"
    assert taken(order) == order.transfers.get(seller=sellers_of(order)[0]).amount + order.transfers.latest("id").amount
    deliver(withdrawn)
    dispute = Dispute.objects.get()
    assert (dispute.amount, dispute.amount_withdrawn, dispute.fee, dispute.balance_currency) == (
        5000,
        5000,
        1500,
        "eur",
    )
    assert (dispute.evidence_due_by and dispute.evidence_due_by.timestamp()) == opened["evidence_details"]["due_by"]
    assert (dispute.stripe_reason, dispute.is_charge_refundable) == ("fraudulent", False)
    simulator.close_dispute(opened["id"], "won")
    for event in told_of(simulator, opened):
        deliver(event)
    dispute.refresh_from_db()
    assert (dispute.status, dispute.amount_reinstated, dispute.amount_lost) == ("won", 5000, 0)
    assert dispute.reinstated_at is not None
    assert taken(order) == 0


def test_an_inquiry_takes_nothing_before_it_becomes_a_chargeback(deliver: Deliver, simulator: Any, paid: Paid) -> None:
    order, charge = paid
    opened = simulator.open_dispute(charge, 2000, withdraw=False)
    simulator.respond_to_dispute(opened["id"])
    for event in told_of(simulator, opened):
        deliver(event)
    assert (Dispute.objects.get().status, taken(order)) == ("warning_under_review", 0)
    simulator.escalate_dispute(opened["id"])
    for event in told_of(simulator, opened):
        deliver(event)
    dispute = Dispute.objects.get()
    assert (dispute.status, dispute.amount_lost) == ("needs_response", 2000)
    assert 0 < taken(order) <= 2000
    simulator.close_dispute(opened["id"], "lost", reinstated=20)
    for event in told_of(simulator, opened):
        deliver(event)
    dispute.refresh_from_db()
    assert (dispute.status, dispute.amount_lost) == ("lost", 1980)


def test_the_fee_and_the_money_may_be_in_another_currency_than_the_dispute(
    deliver: Deliver, simulator: Any, paid: Paid
) -> None:
    order, charge = paid
    opened = simulator.open_dispute(charge, 5400, currency="usd")
    for event in told_of(simulator, opened):
        deliver(event)
    dispute = Dispute.objects.get()
    assert (dispute.amount, dispute.currency) == (5400, "usd")
    assert (dispute.amount_withdrawn, dispute.balance_currency) == (5000, "eur")
    assert dispute.last_error_code == "dispute_in_another_currency"
    assert taken(order) == 0


def test_a_dispute_before_its_payment_waits_for_it(deliver: Deliver, simulator: Any, placed: Order) -> None:
    charge = pay(simulator, placed)
    opened = simulator.open_dispute(charge["id"], 1000)
    created = told_of(simulator, opened)[0]
    early = deliver(created)
    assert (early.status, early.last_error_code) == (EventStatus.FAILED, "unknown_order")
    deliver(only(simulator.events(type="payment_intent.succeeded", object=charge["payment_intent"])))
    early.refresh_from_db()
    assert early.status == EventStatus.PROCESSED
    assert Dispute.objects.get().amount_lost == 1000


def test_a_dispute_makes_a_pending_refund_fail_and_both_together_are_right(
    deliver: Deliver, simulator: Any, paid: Paid
) -> None:
    order, charge = paid
    simulator.create_refund(charge, 2000, status="pending")
    opened = simulator.open_dispute(charge)
    for event in simulator.events():
        if event["type"].startswith(("refund", "charge.dispute")):
            deliver(event)
    refund = order.refunds.get()
    assert (refund.status, refund.amount) == ("failed", 2000)
    assert Dispute.objects.get(stripe_dispute_id=opened["id"]).amount_lost == 5000
    assert taken(order) == sum(each.amount for each in order.transfers.all())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", None),
        ("amount", "1000"),
        ("amount", -1),
        ("is_charge_refundable", 1),
        ("balance_transactions", [{"amount": 1}]),
        ("evidence_details", {"due_by": "soon"}),
        ("created", None),
    ],
)
def test_a_dispute_of_another_shape_is_kept_for_a_person(
    deliver: Deliver, simulator: Any, paid: Paid, field: str, value: Any
) -> None:
    created = told_of(simulator, simulator.open_dispute(paid[1]))[0]
    created["data"]["object"][field] = value
    assert deliver(created).last_error_code == "MalformedEvent"
    assert not Dispute.objects.exists()


@pytest.mark.parametrize("field", ["evidence_details", "balance_transactions", "reason", "is_charge_refundable"])
def test_what_stripe_may_leave_out_is_not_needed(deliver: Deliver, simulator: Any, paid: Paid, field: str) -> None:
    created = told_of(simulator, simulator.open_dispute(paid[1]))[0]
    del created["data"]["object"][field]
    assert deliver(created).status == EventStatus.PROCESSED


# --- Any order --------------------------------------------------------------------------------------------------------


def story(simulator: Any, charge: str, told: dict[str, Any]) -> list[Event]:
    """A refund, and a dispute that goes through all that is told, with the same seconds between any two steps."""
    before = {event["id"] for event in simulator.events()}

    def passes() -> None:
        simulator.clock.advance(told["seconds"])

    if told["refund"]:
        refund = simulator.create_refund(charge, told["refund"], status=told["refund_status"])
        passes()
    opened = simulator.open_dispute(charge, told["amount"], withdraw=told["withdraw"])["id"]
    passes()
    if told["responds"]:
        simulator.respond_to_dispute(opened)
        passes()
    if told["ends"] == "escalated" and not told["withdraw"]:
        simulator.escalate_dispute(opened)
        passes()
    if told["ends"] in {"lost", "won"}:
        simulator.close_dispute(opened, "lost", reinstated=told["reinstated"] if told["withdraw"] else 0)
        passes()
    if told["ends"] in {"won", "prevented"}:
        simulator.close_dispute(opened, told["ends"])
    if told["refund"] and told["refund_fails"]:
        passes()
        simulator.fail_refund(refund["id"])
    return [event for event in simulator.events() if event["id"] not in before]


@st.composite
def stories(draw: st.DrawFn) -> dict[str, Any]:
    amount = draw(st.integers(1, 6000))
    return {
        "amount": amount,
        "refund": draw(st.integers(0, 4999)),
        "refund_status": draw(st.sampled_from(["succeeded", "pending"])),
        "refund_fails": draw(st.booleans()),
        "withdraw": draw(st.booleans()),
        "responds": draw(st.booleans()),
        "ends": draw(st.sampled_from(["open", "escalated", "lost", "won", "prevented"])),
        "reinstated": draw(st.integers(0, amount)),
        "seconds": draw(st.sampled_from([0, 10])),
        "dice": draw(st.randoms(use_true_random=False)),
        "again": draw(st.lists(st.integers(0, 30), max_size=8)),
    }


def snapshot(order: Order) -> dict[str, Any]:
    columns = ("status", "amount", "amount_withdrawn", "amount_reinstated", "amount_lost", "platform_part", "fee")
    return {
        "disputes": list(order.disputes.order_by("id").values_list(*columns)),
        "refunds": list(order.refunds.order_by("id").values_list("status", "amount")),
        "sellers": [money_of(order, seller) for seller in sellers_of(order)],
    }


@pytest.mark.parametrize("setting", ["opened", "funds_withdrawn", "lost"])
@settings(
    max_examples=8, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)
@given(told=stories())
def test_any_order_any_number_of_times_ends_in_the_same_state(
    deliver: Deliver, simulator: Any, setting: str, told: dict[str, Any], settings: Any
) -> None:
    settings.DISPUTE_CLAWBACK_ON = setting
    with rolled_back():
        simulator.reset()
        simulator.add_funds(100_000)
        simulator.clock.freeze()
        ended = []
        for turned in (False, True):
            order = _paid(simulator)
            events = story(simulator, order.stripe_charge_id, told)
            if turned:
                again = [events[number % len(events)] for number in told["again"]]
                events = [*events, *again]
                told["dice"].shuffle(events)
            for event in events:
                deliver(event)
            work(FOR_LONG)
            ended.append(snapshot(order))
        assert ended[0] == ended[1]
        assert not WebhookEvent.objects.filter(status=EventStatus.FAILED).exists()
        dispute = Dispute.objects.latest("id")
        assert dispute.amount_lost == sum(dispute.seller_parts.values()) + dispute.platform_part


def _paid(simulator: Any) -> Order:
    charge = simulator.create_charge(5000)
    return order_with_transfers(
        (3000, 2000), stripe_charge_id=charge["id"], stripe_payment_intent_id=charge["payment_intent"]
    )
