"""The factories make rows that the database's constraints accept, with all that belongs to them."""

import pytest

from marketplace.states import EventStatus, OrderStatus, RefundStatus, ReversalStatus, TransferStatus
from tests.factories import (
    OrderItemFactory,
    RefundFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    UserFactory,
    WebhookEventFactory,
    order_with_transfers,
)

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("status", TransferStatus.values)
def test_each_status_of_a_transfer_has_a_trait(status: str) -> None:
    order = order_with_transfers(status=status)

    assert [transfer.status for transfer in order.transfers.all()] == [status, status]
    assert sum(item.amount for item in order.items.all()) == order.amount


@pytest.mark.parametrize("status", RefundStatus.values)
def test_each_status_of_a_refund_has_a_trait(status: str) -> None:
    traits = {} if status == RefundStatus.REQUESTED else {status: True}
    refund = RefundFactory(**traits)

    refund.refresh_from_db()
    assert refund.status == status
    expected = OrderStatus.REFUNDED if status == RefundStatus.SUCCEEDED else OrderStatus.PAID
    assert refund.order.status == expected


@pytest.mark.parametrize("status", ReversalStatus.values)
def test_each_status_of_a_reversal_has_a_trait(status: str) -> None:
    traits = {} if status == ReversalStatus.PENDING else {status: True}

    assert TransferReversalFactory(**traits).status == status


@pytest.mark.parametrize("status", EventStatus.values)
def test_each_status_of_an_event_has_a_trait(status: str) -> None:
    traits = {} if status == EventStatus.PROCESSED else {status: True}
    event = WebhookEventFactory(**traits)

    assert event.status == status
    assert event.payload["id"] == event.stripe_event_id


def test_a_transfer_that_owes_has_its_reversal_and_refund() -> None:
    order = order_with_transfers((700, 300), status="reversal_pending")

    assert order.status == OrderStatus.REFUNDED
    assert order.refunds.count() == 1
    assert [transfer.reversals.get().amount for transfer in order.transfers.order_by("id")] == [700, 300]


def test_a_legacy_row_owes_without_a_record_of_it() -> None:
    transfer = SellerTransferFactory(reversal_pending=True, reversal=False, stripe_transfer_id="")

    assert not transfer.reversals.exists()


def test_other_parts_are_made_as_asked() -> None:
    user = UserFactory(staff=True, permissions=["add_refund"])
    item = OrderItemFactory(order__currency="jpy")

    assert user.has_perm("marketplace.add_refund")
    assert item.product.currency == "jpy"
    assert SellerTransferFactory(currency="usd").order.currency == "usd"
    assert SellerTransferFactory(order=item.order).currency == "jpy"
