"""People who ask the API, each signed in by a token, and an order that they have to do with."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models.functions import Now
from rest_framework.test import APIClient

from marketplace.models import ApiToken, Order, Refund, SellerTransfer, TransferReversal
from marketplace.roles import Scope
from marketplace.services import api_tokens
from tests.factories import SellerFactory, SellerTransferFactory, UserFactory, order_with_items

VIEWS = [
    f"view_{name}"
    for name in (
        "seller",
        "product",
        "order",
        "refund",
        "sellertransfer",
        "transferreversal",
        "debt",
        "bulkretry",
        "dispute",
        "sellertransfer",
        "transferreversal",
        "debt",
        "webhookevent",
    )
]


def client_of(user: User | None, *scopes: Scope) -> APIClient:
    """Signed in with a token of ``scopes``; without any, of all."""
    client = APIClient()
    if user is not None:
        month = timedelta(days=30)
        made = api_tokens.make(user=user, name="a test's", scopes=scopes or Scope, age=month, actor="a test")
        # Its first use is written down, and would be a query more than the second.
        ApiToken.objects.filter(pk=made.token.pk).update(last_used_at=Now())
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {made.secret}")
    return client


def session_of(user: User) -> APIClient:
    """Signed in to the admin: what no token may do is done so."""
    client = APIClient()
    client.force_login(user)
    return client


@pytest.fixture
def staff(db: None) -> APIClient:
    """Staff who may see everything, and do nothing."""
    return client_of(UserFactory(staff=True, permissions=VIEWS))


@pytest.fixture
def operator(db: None) -> APIClient:
    """Staff who may see everything, refund and retry."""
    return client_of(UserFactory(staff=True, permissions=[*VIEWS, "add_refund", "retry_sellertransfer"]))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An order over two sellers, refunded, one transfer of it in need of a person."""

    order: Order
    transfer: SellerTransfer
    other_transfer: SellerTransfer
    refund: Refund
    reversal: TransferReversal
    clients: dict[str, APIClient]


@pytest.fixture
def scene(db: None) -> Scene:
    order = order_with_items((3000, 2000), paid=True)
    sellers = [SellerFactory(with_user=True), SellerFactory(with_user=True)]
    for item, seller in zip(order.items.order_by("id"), sellers, strict=True):
        item.seller = seller
        item.save(update_fields=["seller"])
    transfer = SellerTransferFactory(order=order, seller=sellers[0], amount=3000, permanently_failed=True)
    other = SellerTransferFactory(order=order, seller=sellers[1], amount=2000, reversal_pending=True)
    people = {
        "buyer": order.buyer,
        "other buyer": order_with_items(paid=True).buyer,
        "seller": sellers[0].user,
        "other seller": sellers[1].user,
        "staff": UserFactory(staff=True),
        "viewer": UserFactory(staff=True, permissions=VIEWS),
        "operator": UserFactory(staff=True, permissions=[*VIEWS, "add_refund", "retry_sellertransfer"]),
    }
    return Scene(
        order=order,
        transfer=transfer,
        other_transfer=other,
        refund=order.refunds.get(),
        reversal=transfer.reversals.get(),
        clients={"anonymous": client_of(None), **{name: client_of(user) for name, user in people.items()}},
    )


@pytest.fixture
def paid_at_stripe(gateway: Any, db: None) -> Callable[..., Order]:
    """A paid order whose payment really is at Stripe."""

    def make(*amounts: int, currency: str = "eur", **fields: Any) -> Order:
        order = order_with_items(amounts or (3000, 2000), paid=True, currency=currency, **fields)
        payment = gateway.create_payment(
            amount=order.amount,
            currency=order.currency,
            transfer_group=order.transfer_group,
            operation_id=order.operation_id,
            payment_method="pm_card_visa",
            idempotency_key=str(order.operation_id),
        ).payment
        order.stripe_payment_intent_id = payment.stripe_payment_intent_id
        order.stripe_charge_id = payment.stripe_charge_id
        order.save(update_fields=["stripe_payment_intent_id", "stripe_charge_id"])
        return order

    return make


def problem(response: Any, status: int, kind: str = "") -> dict[str, Any]:
    """The body of ``response``, which must be a whole problem of this status and kind."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["type"] == (f"urn:veza:problem:{kind}" if kind else "about:blank")
    assert body["title"]
    assert body["detail"]
    return body
