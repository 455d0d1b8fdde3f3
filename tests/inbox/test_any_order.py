"""The same set of events, in any order, any number of times, ends in the same state."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from marketplace.models import Order, WebhookEvent
from marketplace.money import split
from marketplace.states import EventStatus, ReversalStatus
from tests.factories import order_with_items, order_with_transfers
from tests.inbox.conftest import Event, work

Deliver = Callable[[Event], WebhookEvent]
# Enough for the worker to give an event up.
FOR_LONG = 7


def story(simulator: Any, charge: str, refunds: tuple[int, int], *, seconds: int) -> list[Event]:
    """A refund that waits and then succeeds; a second one that succeeds at once, and fails when the bank returns it.

    ``seconds`` between any two steps: none means that Stripe's times do not tell their order.
    """
    before = {event["id"] for event in simulator.events()}
    first = simulator.create_refund(charge, refunds[0], status="pending")
    simulator.clock.advance(seconds)
    simulator.succeed_refund(first["id"])
    simulator.clock.advance(seconds)
    if refunds[1]:
        second = simulator.create_refund(charge, refunds[1], status="succeeded")
        simulator.clock.advance(seconds)
        simulator.fail_refund(second["id"])
    return [event for event in simulator.events() if event["id"] not in before]


def snapshot(order: Order) -> dict[str, Any]:
    """All that the events may have decided; ids and the times of our own work aside."""
    order.refresh_from_db()
    return {
        "order": (order.status, order.amount_refunded, order.paid_at is not None),
        "refunds": [
            (
                refund.status,
                refund.amount,
                refund.succeeded_at and refund.succeeded_at.timestamp() - order_epoch(order),
                refund.stripe_seen_at and refund.stripe_seen_at.timestamp() - order_epoch(order),
            )
            for refund in order.refunds.order_by("amount", "status")
        ],
        "sellers": [money_of(order, seller) for seller in sellers_of(order)],
    }


def sellers_of(order: Order) -> list[int]:
    """By their place: twins are sold by different ones."""
    return sorted({transfer.seller_id for transfer in order.transfers.all()})


def money_of(order: Order, seller: int) -> dict[str, Any]:
    """How a cent is rounded between two refunds may differ, and what was canceled on the way; the money may not."""
    paid = list(order.transfers.filter(seller=seller).exclude(status="canceled"))
    owed = [reversal for transfer in paid for reversal in transfer.reversals.filter(status=ReversalStatus.PENDING)]
    return {
        "status": sorted(transfer.status for transfer in paid),
        "is due": all(transfer.next_retry_at is not None for transfer in paid if transfer.status != "completed"),
        "sent": sum(transfer.amount for transfer in paid),
        "reversed": sum(transfer.amount_reversed for transfer in paid),
        "owed": sum(reversal.amount - reversal.unwanted_amount for reversal in owed),
    }


def order_epoch(order: Order) -> float:
    """The time of the order's payment at Stripe: twins are paid at different times."""
    event = WebhookEvent.objects.get(
        type="payment_intent.succeeded", payload__data__object__id=order.stripe_payment_intent_id
    )
    return event.stripe_created_at.timestamp()


@contextmanager
def rolled_back() -> Iterator[None]:
    """Each example starts with an empty database; like a test case's own, this transaction counts as none."""
    with transaction.atomic() as _:
        block = transaction.get_connection().atomic_blocks[-1]
        block._from_testcase = True
        yield
        transaction.set_rollback(True)


@st.composite
def stories(draw: st.DrawFn) -> dict[str, Any]:
    amounts = [draw(st.integers(50, 3000)), *draw(st.lists(st.integers(1, 3000), max_size=3))]
    total = sum(amounts)
    first = draw(st.integers(1, total))
    # Where the first took everything there is no second.
    second = draw(st.integers(1, total - first)) if first < total else 0
    return {
        "amounts": amounts,
        "refunds": (first, second),
        "commission": draw(st.sampled_from([0, 1000, 9999])),
        "seconds": draw(st.sampled_from([0, 10])),
        # By its place among the events; the rest comes afterwards, in the order of these dice.
        "arrivals": draw(st.lists(st.integers(0, 30), max_size=12)),
        "dice": draw(st.randoms(use_true_random=False)),
        "patience": draw(st.integers(0, 12)),
    }


@pytest.mark.parametrize("sent", [False, True], ids=["before the transfers are sent", "after the sellers have it"])
# An example costs half a second: the failing one is told as it is.
@settings(max_examples=10, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
@given(told=stories())
def test_any_order_any_number_of_times_ends_in_the_same_state(
    deliver: Deliver, simulator: Any, sent: bool, told: dict[str, Any]
) -> None:
    with rolled_back():
        simulator.reset()
        simulator.set(allow_negative_balances=True)
        simulator.clock.freeze()
        (straight, in_order), (shuffled, events) = (_tell(simulator, told, sent=sent) for _ in range(2))
        for event in in_order:
            deliver(event)
        work(FOR_LONG)

        arriving = [events[number % len(events)] for number in told["arrivals"]]
        rest = [event for event in events if event not in arriving]
        told["dice"].shuffle(rest)
        for number, event in enumerate([*arriving, *rest]):
            deliver(event)
            if number == told["patience"]:
                # So late comes the rest that the worker has given up by then.
                work(FOR_LONG)
        work(FOR_LONG)

        assert snapshot(shuffled) == snapshot(straight)
        assert not WebhookEvent.objects.filter(status=EventStatus.FAILED).exists()


def _tell(simulator: Any, told: dict[str, Any], *, sent: bool) -> tuple[Order, list[Event]]:
    amounts, seconds = told["amounts"], told["seconds"]
    operation = uuid4()
    charge = simulator.create_charge(sum(amounts), metadata={"order_operation_id": str(operation)})
    known: dict[str, Any] = {"operation_id": operation, "commission_basis_points": told["commission"]}
    if sent:
        at_stripe = {"stripe_charge_id": charge["id"], "stripe_payment_intent_id": charge["payment_intent"]}
        order = order_with_transfers(amounts, **at_stripe, **known)
    else:
        order = order_with_items(amounts, **known)
    payment = simulator.events(type="payment_intent.succeeded", object=charge["payment_intent"])
    simulator.clock.advance(seconds)
    return order, [*payment, *story(simulator, charge["id"], told["refunds"], seconds=seconds)]


def test_how_cents_are_rounded_does_not_depend_on_which_refund_came_first(deliver: Deliver, simulator: Any) -> None:
    """Largest remainders do not only grow: of 3 cents over 6, 6 and 2 the third bears one, of 4 none."""
    owed = []
    for amounts in ((3, 1), (1, 3)):
        charge = simulator.create_charge(1400)
        order = order_with_transfers(
            (600, 600, 200),
            commission_basis_points=0,
            stripe_charge_id=charge["id"],
            stripe_payment_intent_id=charge["payment_intent"],
        )
        for amount in amounts:
            refund = simulator.create_refund(charge["id"], amount, status="succeeded")
            (created,) = simulator.events(type="refund.created", object=refund["id"])
            deliver(created)
        owed.append([sum(r.amount for r in transfer.reversals.all()) for transfer in order.transfers.order_by("id")])
    assert owed == [[2, 2, 0], [2, 2, 0]]


@pytest.mark.parametrize("turned", [False, True])
def test_a_refund_has_succeeded_since_the_first_time_that_stripe_said_so(
    deliver: Deliver, simulator: Any, turned: bool
) -> None:
    simulator.clock.freeze()
    charge = simulator.create_charge(5000)
    order = order_with_transfers(
        (3000, 2000), stripe_charge_id=charge["id"], stripe_payment_intent_id=charge["payment_intent"]
    )
    refund = simulator.create_refund(charge["id"], status="succeeded")
    simulator.clock.advance(60)
    # Such as the bank's reference number, days later.
    simulator.emit("refund.updated", simulator.get(refund["id"]))
    events = simulator.events(object=refund["id"])
    assert {event["created"] for event in events} == {refund["created"], refund["created"] + 60}
    for event in reversed(events) if turned else events:
        deliver(event)
    told = order.refunds.get()
    assert told.succeeded_at is not None
    assert told.stripe_seen_at is not None
    assert told.succeeded_at.timestamp() == refund["created"]
    assert told.stripe_seen_at.timestamp() == refund["created"] + 60


def test_a_large_part_makes_room_for_small_ones_that_are_nearer_to_the_next_cent() -> None:
    assert split(28, [90, 2, 2, 2, 2, 2]) == [23, 1, 1, 1, 1, 1]


@given(weights=st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_larger_total_makes_no_part_smaller_and_all_is_shared_out(weights: list[int]) -> None:
    before = [0 for _ in weights]
    for total in range(sum(weights) + 1):
        parts = split(total, weights)
        assert sum(parts) == total
        assert all(old <= new <= weight for old, new, weight in zip(before, parts, weights, strict=True))
        before = parts
    assert before == weights
