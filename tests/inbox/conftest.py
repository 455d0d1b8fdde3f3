"""Events as the simulator makes and signs them, taken the whole way: bytes, signature, inbox."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from marketplace import inbox
from marketplace.gateway import stripe_events
from marketplace.models import Order, WebhookEvent
from marketplace.states import EventStatus
from tests.factories import order_with_items, order_with_transfers

Event = dict[str, Any]
SECRET = "whsec_testPlatform"


@pytest.fixture
def verified(simulator: Any) -> Callable[[Event], stripe_events.IncomingEvent]:
    return lambda event: stripe_events.verify(*simulator.sign(event, SECRET))


@pytest.fixture
def deliver(db: None, verified: Callable[[Event], stripe_events.IncomingEvent]) -> Callable[..., WebhookEvent]:
    """Stripe posts the event to us; the row as it is afterwards."""

    def receive(event: Event) -> WebhookEvent:
        row = inbox.receive(verified(event))
        return WebhookEvent.objects.get(pk=row.pk)

    return receive


@pytest.fixture
def placed(db: None) -> Order:
    """An order of 5000 over two sellers, not paid."""
    return order_with_items((3000, 2000))


def pay(simulator: Any, order: Order) -> Any:
    """The buyer's payment at Stripe; its charge."""
    return simulator.create_charge(
        order.amount,
        order.currency,
        transfer_group=order.transfer_group,
        metadata={"order_operation_id": str(order.operation_id)},
    )


@pytest.fixture
def paid(db: None, simulator: Any) -> tuple[Order, str]:
    """A paid order whose sellers have their money, and its charge at Stripe."""
    charge = simulator.create_charge(5000)
    order = order_with_transfers(
        (3000, 2000), stripe_charge_id=charge["id"], stripe_payment_intent_id=charge["payment_intent"]
    )
    return order, charge["id"]


def events_of(simulator: Any, type: str, object: str | None = None) -> list[Event]:  # noqa: A002 - as the simulator does
    found: list[Event] = simulator.events(type=type, object=object)
    return found


def only(found: Iterable[Any]) -> Any:
    (one,) = found
    return one


def make_due(**which: Any) -> None:
    failed = WebhookEvent.objects.filter(status=EventStatus.FAILED, next_retry_at__isnull=False, **which)
    failed.update(next_retry_at=Now() - timedelta(seconds=1))


def work(rounds: int = 1) -> int:
    """What the worker does with the events that wait, each of ``rounds`` times as though their time had come."""
    applied = 0
    for _ in range(rounds):
        make_due()
        for claimed in inbox.claim(batch_size=100, lease=timedelta(minutes=5)):
            inbox.apply_again(claimed)
            applied += 1
    return applied
