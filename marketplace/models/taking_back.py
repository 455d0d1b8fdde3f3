"""What decides how much is taken back, read and locked in the order that all keep: order, refunds, disputes, transfers.

Each in a statement of its own, so that it sees what others committed while we waited for the locks of the one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from django.db import connection, models

from marketplace.models import together
from marketplace.models.disputes import Dispute
from marketplace.models.refunds import Refund
from marketplace.models.sales import Order
from marketplace.models.transfers import SellerTransfer, TransferReversal

M = TypeVar("M", bound=models.Model)


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
    columns = ", ".join(f"row.{field.column}" for field in model._meta.concrete_fields)
    return f"SELECT {columns} FROM {model._meta.db_table} AS row"  # noqa: S608 - columns of our own tables


def _instances(model: type[M], rows: Sequence[Sequence[Any]]) -> list[M]:
    if not rows:
        return []
    fields = model._meta.concrete_fields
    columns = [field.attname for field in fields]
    # As the ORM does it: Django has psycopg leave JSON as text.
    read = [(at, field.from_db_value) for at, field in enumerate(fields) if hasattr(field, "from_db_value")]
    made = []
    for row in rows:
        values = list(row)
        for at, from_db_value in read:
            values[at] = from_db_value(values[at], None, connection)
        made.append(model.from_db("default", columns, values))
    return made


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
_DISPUTES = f"{_DISPUTE} WHERE {_OF_ORDER} ORDER BY id FOR NO KEY UPDATE"
_TRANSFERS = f"{_TRANSFER} WHERE {_OF_ORDER} ORDER BY id FOR NO KEY UPDATE"
_OF_TRANSFERS = f"transfer_id IN (SELECT id FROM marketplace_sellertransfer WHERE {_OF_ORDER})"  # noqa: S608 - as above
_REVERSALS = f"{_REVERSAL} WHERE {_OF_TRANSFERS}"
_PAID = "FROM marketplace_order WHERE {by} AND status <> 'pending'"
_NEXT_REFUND_ID = f"SELECT nextval('marketplace_refund_id_seq') {_PAID}"


def found(by: str, named: str | int) -> Found | None:
    """The order that a payment intent, charge or refund of Stripe belongs to, with what was taken back of it; order,
    refunds, disputes and transfers locked until the transaction ends. None where there is no such order.
    """
    orders, refunds, disputes, transfers, reversals, numbers = together.ask(
        (f"{_ORDER} WHERE {by} FOR NO KEY UPDATE", [named]),
        (_REFUNDS.format(by=by), [named]),
        (_DISPUTES.format(by=by), [named]),
        (_TRANSFERS.format(by=by), [named]),
        (_REVERSALS.format(by=by), [named]),
        (_NEXT_REFUND_ID.format(by=by), [named]),
    )
    if not orders:
        return None
    owed = _instances(TransferReversal, reversals)
    return Found(
        order=_instances(Order, orders)[0],
        refunds=_instances(Refund, refunds),
        disputes=_instances(Dispute, disputes),
        transfers=[
            (transfer, [each for each in owed if each.transfer_id == transfer.pk])
            for transfer in _instances(SellerTransfer, transfers)
        ],
        next_refund_id=numbers[0][0] if numbers else None,
    )
