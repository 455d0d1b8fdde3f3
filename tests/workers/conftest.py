"""A reversal owed at a Stripe that is really there, and the worker that runs once."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from marketplace.models import SellerTransfer
from marketplace.workers import reversal, transfer_retry
from tests.factories import OrderFactory, SellerFactory, SellerTransferFactory

REVERSE = "POST /v1/transfers/{id}/reversals"
CREATE = "POST /v1/transfers"


@pytest.fixture(autouse=True)
def _one_thread(settings: Any) -> None:
    """Tests run inside a transaction, which threads of a pool would not see: see ``run_reversals``."""
    settings.REVERSAL_BACKOFF_BASE = timedelta(minutes=1)
    settings.REVERSAL_BACKOFF_MAX = timedelta(hours=1)


def drain(queue: Any) -> int:
    """What the worker's loop does with everything that is due, in this thread."""
    done = 0
    while claimed := queue.claim(batch_size=10, lease=timedelta(minutes=5)):
        for row in claimed:
            queue.perform(row)
            done += 1
    return done


@pytest.fixture
def run_reversals(db: None, gateway: Any) -> Callable[[], int]:
    return lambda: drain(reversal.ReversalQueue(gateway))


@pytest.fixture
def run_transfers(db: None, gateway: Any) -> Callable[[], int]:
    return lambda: drain(transfer_retry.TransferQueue(gateway))


@pytest.fixture
def at_stripe(db: None, simulator: Any) -> Callable[..., SellerTransfer]:
    """A row in the given state whose transfer exists at Stripe."""

    def make(amount: int = 5000, **traits: Any) -> SellerTransfer:
        account = simulator.create_account()
        transfer = simulator.create_transfer(amount, account["id"])
        seller = SellerFactory(stripe_account_id=account["id"])
        traits = traits or {"reversal_pending": True}
        # Together with its reversal: a worker may be running.
        with transaction.atomic():
            row = SellerTransferFactory(seller=seller, amount=amount, stripe_transfer_id=transfer["id"], **traits)
        return SellerTransfer.objects.get(pk=row.pk)

    return make


@pytest.fixture
def payable(db: None, simulator: Any) -> Callable[..., SellerTransfer]:
    """A row to be sent, for a charge and an account that Stripe has."""

    def make(amount: int = 5000, **traits: Any) -> SellerTransfer:
        account = simulator.create_account()
        charge = simulator.create_charge(10_000)
        order = OrderFactory(
            paid=True,
            amount=10_000,
            stripe_charge_id=charge["id"],
            stripe_payment_intent_id=charge["payment_intent"],
        )
        seller = SellerFactory(stripe_account_id=account["id"])
        row = SellerTransferFactory(order=order, seller=seller, amount=amount, **traits)
        return SellerTransfer.objects.get(pk=row.pk)

    return make
