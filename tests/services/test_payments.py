"""An order is placed, paid by Stripe's word, and owes its sellers their shares."""

from datetime import UTC, datetime
from typing import Any

import pytest

from marketplace.errors import ConflictingFacts, NotAllowedNow, UnknownOrder
from marketplace.gateway.contract import Denied, PaymentCreated, PaymentFacts
from marketplace.models import Order, Product
from marketplace.money import LARGEST_AMOUNT
from marketplace.services import payments
from marketplace.states import OrderStatus, TransferStatus
from tests.factories import OrderFactory, ProductFactory, UserFactory, order_with_items

pytestmark = pytest.mark.django_db
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def place(*lines: tuple[Product, int]) -> Order:
    return payments.place_order(buyer=UserFactory(), lines=lines, actor="user:buyer")


def facts(order: Order, **changes: Any) -> PaymentFacts:
    described: dict[str, Any] = {
        "stripe_payment_intent_id": "pi_1",
        "stripe_charge_id": "ch_1",
        "amount_received": order.amount,
        "currency": order.currency,
        "status": "succeeded",
        "order_operation_id": str(order.operation_id),
        "paid_at": NOON,
    }
    return PaymentFacts(**{**described, **changes})


def test_an_order_keeps_the_prices_and_the_commission_of_its_day(settings: Any) -> None:
    settings.COMMISSION_BASIS_POINTS, settings.REFUND_COMMISSION = 1500, "platform_keeps"
    product = ProductFactory(unit_amount=1250)
    order = place((product, 3), (ProductFactory(unit_amount=999), 1))
    Product.objects.update(unit_amount=1)
    settings.COMMISSION_BASIS_POINTS, settings.REFUND_COMMISSION = 0, "proportional"
    order.refresh_from_db()
    assert (order.amount, order.status, order.commission_basis_points) == (4749, OrderStatus.PENDING, 1500)
    assert order.refund_commission == "platform_keeps"
    assert [item.amount for item in order.items.all()] == [3750, 999]


@pytest.mark.parametrize("lines", ["none", "two currencies", "no quantity", "not sold", "too large"])
def test_an_order_that_makes_no_sense_is_refused(lines: str) -> None:
    euro = ProductFactory(unit_amount=1000)
    refused: dict[str, list[tuple[Product, int]]] = {
        "none": [],
        "two currencies": [(euro, 1), (ProductFactory(currency="usd"), 1)],
        "no quantity": [(euro, 0)],
        "not sold": [(ProductFactory(active=False), 1)],
        "too large": [(ProductFactory(unit_amount=LARGEST_AMOUNT), 2)],
    }
    with pytest.raises(NotAllowedNow):
        place(*refused[lines])
    assert Order.objects.count() == 0


@pytest.mark.parametrize(
    ("currency", "price", "share"),
    [("kwd", 1230, 1110), ("isk", 99_900, 90_000), ("jpy", 123, 111), ("kwd", 1234, 1114)],
)
def test_a_share_is_an_amount_that_stripe_sends_in_its_currency(currency: str, price: int, share: int) -> None:
    order = place((ProductFactory(unit_amount=price, currency=currency), 1))
    payments.record(facts(order), actor="stripe:evt_1")
    # The commission of ten percent is rounded down, never up. A price that Stripe does not take stays as it is.
    assert order.transfers.get().amount == share


def test_a_payment_makes_the_order_paid_and_one_transfer_per_seller_due() -> None:
    seller_of_two = ProductFactory(unit_amount=1000)
    sibling = ProductFactory(unit_amount=500, seller=seller_of_two.seller)
    order = place((seller_of_two, 1), (sibling, 2), (ProductFactory(unit_amount=1999), 1))
    payments.record(facts(order), actor="stripe:evt_1")
    order.refresh_from_db()
    assert (order.status, order.stripe_charge_id, order.paid_at) == (OrderStatus.PAID, "ch_1", NOON)
    transfers = list(order.transfers.order_by("id"))
    # Ten percent commission, rounded down per seller: 2000 - 200, 1999 - 199.
    assert [transfer.amount for transfer in transfers] == [1800, 1800]
    assert {transfer.status for transfer in transfers} == {TransferStatus.PENDING}
    assert all(transfer.next_retry_at for transfer in transfers)
    assert len({transfer.idempotency_key for transfer in transfers}) == 2
    created = transfers[0].history.get()
    assert (created.pgh_label, created.pgh_context["actor"]) == ("created", "stripe:evt_1")


def test_the_same_payment_again_changes_nothing() -> None:
    order = order_with_items((3000, 2000))
    payments.record(facts(order), actor="a")
    payments.record(facts(order), actor="a")
    assert order.transfers.count() == 2
    assert order.history.count() == 2


def test_a_payment_without_our_metadata_is_found_by_its_id() -> None:
    order = order_with_items((3000,), stripe_payment_intent_id="pi_1")
    assert payments.record(facts(order, order_operation_id=""), actor="a").pk == order.pk


@pytest.mark.parametrize("operation_id", ["", "nonsense", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
def test_a_payment_of_no_order_of_ours_is_told_apart(operation_id: str) -> None:
    with pytest.raises(UnknownOrder, match="pi_1"):
        payments.record(facts(OrderFactory.build(), order_operation_id=operation_id), actor="a")


@pytest.mark.parametrize("changes", [{"amount_received": 2999}, {"currency": "usd"}])
def test_a_payment_of_another_amount_or_currency_is_refused(changes: dict[str, Any]) -> None:
    order = order_with_items((3000,))
    with pytest.raises(ConflictingFacts):
        payments.record(facts(order, **changes), actor="a")
    order.refresh_from_db()
    assert (order.status, order.transfers.count()) == (OrderStatus.PENDING, 0)


def test_a_second_payment_of_an_order_is_refused() -> None:
    order = order_with_items((3000,))
    payments.record(facts(order), actor="a")
    with pytest.raises(ConflictingFacts, match="was paid by pi_1"):
        payments.record(facts(order, stripe_payment_intent_id="pi_2"), actor="a")


def test_asking_for_the_payment_twice_charges_once(gateway: Any, simulator: Any) -> None:
    order = order_with_items((3000,))
    first = payments.charge(order, gateway, payment_method="pm_card_visa")
    second = payments.charge(order, gateway, payment_method="pm_card_visa")
    assert isinstance(first, PaymentCreated)
    assert isinstance(second, PaymentCreated)
    assert first.payment == second.payment
    order.refresh_from_db()
    assert order.stripe_payment_intent_id == first.payment.stripe_payment_intent_id
    assert order.status == OrderStatus.PENDING
    assert len(simulator.events(type="charge.succeeded")) == 1
    assert simulator.get(first.payment.stripe_payment_intent_id)["transfer_group"] == order.transfer_group


def test_a_payment_known_as_that_of_another_order_is_refused(gateway: Any) -> None:
    order, other = order_with_items((3000,)), order_with_items((3000,))
    paid = payments.charge(order, gateway, payment_method="pm_card_visa")
    assert isinstance(paid, PaymentCreated)
    # As with a Stripe that started from nothing and counts its ids anew.
    Order.objects.filter(pk=order.pk).update(stripe_payment_intent_id="")
    Order.objects.filter(pk=other.pk).update(stripe_payment_intent_id=paid.payment.stripe_payment_intent_id)
    with pytest.raises(ConflictingFacts, match="pays another order"):
        payments.charge(order, gateway, payment_method="pm_card_visa")


def test_a_payment_that_stripe_refuses_leaves_the_order_as_it_was(gateway: Any, simulator: Any) -> None:
    order = order_with_items((3000,))
    simulator.faults.add("unauthorized", endpoint="POST /v1/payment_intents")
    assert isinstance(payments.charge(order, gateway, payment_method="pm_card_visa"), Denied)
    order.refresh_from_db()
    assert (order.status, order.stripe_payment_intent_id) == (OrderStatus.PENDING, "")
