"""Work for the workers, made in bulk: each row belongs to a seller of its own and exists at Stripe as well."""

import uuid
from collections.abc import Sequence
from typing import Any

from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.utils import timezone

from marketplace.models import Order, Refund, Seller, SellerTransfer, TransferReversal
from marketplace.states import OrderStatus, RefundStatus, TransferStatus

AMOUNT = 5000
# A reversal of a part leaves enough for a second one: only so does Stripe let anything be done twice.
PART = 2000


def have_paid(simulator: Any, count: int) -> list[SellerTransfer]:
    """Transfers that are with their sellers, of orders whose payment Stripe knows."""
    charges = [simulator.create_charge(AMOUNT) for _ in range(count)]
    return _completed(simulator, _orders(count, AMOUNT, charges=charges))


def owe_reversals(simulator: Any, count: int) -> list[int]:
    """Transfers that are paid and refunded, in part and in whole by turns, due to be reversed now; their ids."""
    owed = [PART if number % 2 == 0 else AMOUNT for number in range(count)]
    transfers = _completed(simulator, _orders(count, AMOUNT, refunded=owed))
    refunds = Refund.objects.bulk_create(
        Refund(
            order=transfer.order,
            amount=amount,
            currency="eur",
            reason="made at Stripe",
            status=RefundStatus.SUCCEEDED,
            stripe_refund_id=_id("re"),
            succeeded_at=timezone.now(),
        )
        for transfer, amount in zip(transfers, owed, strict=True)
    )
    TransferReversal.objects.bulk_create(
        TransferReversal(
            transfer=transfer, amount=refund.amount, currency="eur", cause=TransferReversal.Cause.REFUND, refund=refund
        )
        for transfer, refund in zip(transfers, refunds, strict=True)
    )
    ids = [transfer.pk for transfer in transfers]
    # All become due in one transaction, as the sellers of one refund do.
    SellerTransfer.objects.filter(pk__in=ids).update(status=TransferStatus.REVERSAL_PENDING, next_retry_at=Now())
    return ids


def owe_transfers(simulator: Any, count: int, *, amount: int = AMOUNT) -> list[int]:
    """Transfers of paid orders, due to be sent now; their ids."""
    accounts = [simulator.create_account()["id"] for _ in range(count)]
    simulator.add_funds(amount * count)
    transfers = SellerTransfer.objects.bulk_create(
        SellerTransfer(order=order, seller=seller, amount=amount, currency="eur", next_retry_at=Now())
        for order, seller in zip(_orders(count, amount), _sellers(accounts), strict=True)
    )
    return [transfer.pk for transfer in transfers]


def request_refunds(simulator: Any, count: int, *, amount: int = AMOUNT) -> list[int]:
    """Refunds asked for by us, which Stripe has not heard of: as where the web process died; their ids."""
    charges = [simulator.create_charge(amount) for _ in range(count)]
    refunds = Refund.objects.bulk_create(
        Refund(
            order=order,
            amount=amount,
            currency="eur",
            requested_by=order.buyer,
            request_key=_id("key"),
            first_attempted_at=Now(),
            next_retry_at=Now(),
        )
        for order in _orders(count, amount, charges=charges)
    )
    return [refund.pk for refund in refunds]


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _completed(simulator: Any, orders: Sequence[Order]) -> list[SellerTransfer]:
    accounts = [simulator.create_account()["id"] for _ in orders]
    return SellerTransfer.objects.bulk_create(
        SellerTransfer(
            order=order,
            seller=seller,
            amount=order.amount,
            currency="eur",
            stripe_transfer_id=simulator.create_transfer(order.amount, account)["id"],
            first_attempted_at=timezone.now(),
            status=TransferStatus.COMPLETED,
        )
        for order, account, seller in zip(orders, accounts, _sellers(accounts), strict=True)
    )


def _sellers(accounts: Sequence[str]) -> list[Seller]:
    return Seller.objects.bulk_create(Seller(name=account, stripe_account_id=account) for account in accounts)


def _orders(
    count: int, amount: int, *, refunded: Sequence[int] = (), charges: Sequence[dict[str, Any]] = ()
) -> list[Order]:
    buyer = User.objects.create(username=_id("buyer"))
    return Order.objects.bulk_create(
        Order(
            buyer=buyer,
            amount=amount,
            amount_refunded=refunded[number] if refunded else 0,
            currency="eur",
            status=_status(refunded[number] if refunded else 0, amount),
            paid_at=timezone.now(),
            stripe_payment_intent_id=charges[number]["payment_intent"] if charges else _id("pi"),
            # Only what the simulator knows may be named to it as the source of a transfer.
            stripe_charge_id=charges[number]["id"] if charges else "",
        )
        for number in range(count)
    )


def _status(refunded: int, amount: int) -> OrderStatus:
    if refunded == 0:
        return OrderStatus.PAID
    return OrderStatus.REFUNDED if refunded == amount else OrderStatus.PARTIALLY_REFUNDED
