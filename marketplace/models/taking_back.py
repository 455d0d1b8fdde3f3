"""What decides how much is taken back, read and locked in the order that all keep: order, refunds, transfers.

Each in a statement of its own, so that it sees what others committed while we waited for the locks of the one before.
"""

from dataclasses import dataclass
from functools import cache

from django.db import models

from marketplace.models import together
from marketplace.models.disputes import Dispute
from marketplace.models.refunds import Refund
from marketplace.models.reversals import TransferReversal
from marketplace.models.sales import Order
from marketplace.models.transfers import SellerTransfer


@dataclass(frozen=True, kw_only=True)
class Found:
    """An order, all its refunds and disputes, and its transfers by id, each with all its reversals."""

    order: Order
    refunds: list[Refund]
    disputes: list[Dispute]
    transfers: list[tuple[SellerTransfer, list[TransferReversal]]]
    # For a refund that is new, so that what refers to it can be written together with it; of a paid order only.
    next_refund_id: int | None


def _select(model: type[models.Model]) -> str:
    columns = ", ".join(str(field.column) for field in model._meta.concrete_fields)
    return f"SELECT {columns} FROM {model._meta.db_table}"  # noqa: S608 - columns of our own tables


# How an order is found: one look-up after the other, each by its index. In one condition together none could be used.
BY_PAYMENT_INTENT = "stripe_payment_intent_id = %s"
BY_CHARGE = "stripe_charge_id = %s"
BY_ID = "id = %s"
BY_DISPUTE = "id = (SELECT order_id FROM marketplace_dispute WHERE stripe_dispute_id = %s)"
BY_REFUND = "id = (SELECT order_id FROM marketplace_refund WHERE stripe_refund_id = %s)"
_ORDER, _REFUND, _DISPUTE, _TRANSFER, _REVERSAL = map(
    _select, (Order, Refund, Dispute, SellerTransfer, TransferReversal)
)
_OF_ORDER = "order_id = (SELECT id FROM marketplace_order WHERE {by})"
_REFUNDS = f"{_REFUND} WHERE {_OF_ORDER} ORDER BY id FOR NO KEY UPDATE"
_DISPUTES = f"{_DISPUTE} WHERE {_OF_ORDER} ORDER BY id"
_TRANSFERS = f"{_TRANSFER} WHERE {_OF_ORDER} ORDER BY id FOR NO KEY UPDATE"
# Of an array, for PostgreSQL plans it in half the time of a join.
_OF_TRANSFERS = f"transfer_id = ANY(ARRAY(SELECT id FROM marketplace_sellertransfer WHERE {_OF_ORDER}))"  # noqa: S608
_REVERSALS = f"{_REVERSAL} WHERE {_OF_TRANSFERS}"
_IS_DISPUTED = "EXISTS (SELECT FROM marketplace_dispute AS dispute WHERE dispute.order_id = paid.id)"
_PAID = "FROM marketplace_order AS paid WHERE {by} AND status <> 'pending'"
_OF_PAID = f"SELECT nextval('marketplace_refund_id_seq'), {_IS_DISPUTED} {_PAID}"


@cache
def _questions(by: str) -> tuple[str, ...]:
    order = f"{_ORDER} WHERE {by} FOR NO KEY UPDATE"
    return order, *(sql.format(by=by) for sql in (_REFUNDS, _TRANSFERS, _REVERSALS, _OF_PAID))


def found(by: str, named: str | int) -> Found | None:
    """The order that a payment intent, charge or refund of Stripe belongs to, with what was taken back of it; order,
    refunds and transfers locked until the transaction ends, and by the order's lock its disputes. None where there is
    no such order.
    """
    orders, refunds, transfers, reversals, paid = together.ask(*((sql, [named]) for sql in _questions(by)))
    if not orders:
        return None
    next_refund_id, is_disputed = paid[0] if paid else (None, False)
    owed = list(map(TransferReversal.read, reversals))
    return Found(
        order=Order.read(orders[0]),
        refunds=list(map(Refund.read, refunds)),
        # Few orders have any, and whoever writes one holds the order's lock: so they are asked for only then.
        disputes=list(map(Dispute.read, *together.ask((_DISPUTES.format(by=by), [named])))) if is_disputed else [],
        transfers=[
            (transfer, [each for each in owed if each.transfer_id == transfer.pk])
            for transfer in map(SellerTransfer.read, transfers)
        ],
        next_refund_id=next_refund_id,
    )
