"""Orders that are really sold at the simulator, and the workers that bring their money to where it belongs."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import Value
from django.db.models.functions import Now

from marketplace.models import Order, SellerTransfer, TransferReversal
from marketplace.workers import reversal as reversal_worker
from marketplace.workers import transfer_retry
from tests.factories import SellerTransferFactory, order_with_items
from tests.workers.conftest import drain

REVERSE = "POST /v1/transfers/{id}/reversals"
Make = Callable[..., Order]


@pytest.fixture
def sold(db: None, simulator: Any, gateway: Any) -> Make:
    """A paid order whose sellers exist at Stripe, and have their shares unless ``sent=False``."""

    def make(amounts: tuple[int, ...] = (3000,), *, sent: bool = True) -> Order:
        simulator.add_funds(1_000_000)
        charge = simulator.create_charge(sum(amounts))
        order = order_with_items(
            amounts,
            paid=True,
            commission_basis_points=1000,
            stripe_charge_id=charge["id"],
            stripe_payment_intent_id=charge["payment_intent"],
        )
        for item in order.items.select_related("product__seller"):
            seller = item.seller
            seller.stripe_account_id = simulator.create_account()["id"]
            seller.save()
            SellerTransferFactory(order=order, seller=seller, amount=item.amount - item.amount // 10)
        if sent:
            drain(transfer_retry.TransferQueue(gateway))
        return order

    return make


@pytest.fixture
def work(gateway: Any) -> Callable[[], None]:
    """Both workers, until nothing is due. What waits for a later time is due now; what was on its way has arrived."""

    def run() -> None:
        for _ in range(4):
            long_unwanted()
            SellerTransfer.objects.filter(next_retry_at__isnull=False).update(next_retry_at=Now())
            drain(reversal_worker.ReversalQueue(gateway))
            drain(transfer_retry.TransferQueue(gateway))

    return run


def long_unwanted() -> None:
    """As if what is no longer owed had been so for long: whatever was sent for it has arrived."""
    hours = timedelta(hours=3)
    TransferReversal.objects.filter(unwanted_at__isnull=False).update(unwanted_at=Now() - Value(hours))


def kept_at_stripe(simulator: Any, order: Order) -> list[int]:
    """What each seller has of this order, as Stripe says."""
    accounts = list(dict.fromkeys(order.transfers.order_by("id").values_list("seller__stripe_account_id", flat=True)))
    created = [event["data"]["object"]["id"] for event in simulator.events(type="transfer.created")]
    made = [each for each in map(simulator.get, created) if each["transfer_group"] == order.transfer_group]
    return [
        sum(each["amount"] - each["amount_reversed"] for each in made if each["destination"] == account)
        for account in accounts
    ]
