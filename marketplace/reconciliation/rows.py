"""Our rows as a reconciliation reads them: unlocked, for nothing is decided here. And whether they move."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import Exists, OuterRef, Q, QuerySet

from marketplace.gateway.contract import TransferFacts
from marketplace.models import Order, Reconciliation, ReconciliationSubject, Refund, SellerTransfer
from marketplace.reconciliation.comparing import Ours, operation_of
from marketplace.services import clawback


def now() -> datetime:
    """By the database's clock, as all times in rows."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        found: datetime = cursor.fetchone()[0]
    return found


def _transfers() -> QuerySet[SellerTransfer]:
    return SellerTransfer.objects.select_related("seller").prefetch_related("reversals")


def by_id(stripe_transfer_id: str) -> Ours | None:
    return next((_ours(row) for row in _transfers().filter(stripe_transfer_id=stripe_transfer_id)), None)


def of_transfers(facts: Sequence[TransferFacts]) -> dict[str, Ours]:
    """By ``tr_…``: the row that has it, or else the one whose operation id it bears."""
    ids = [each.stripe_transfer_id for each in facts]
    found = {row.stripe_transfer_id: _ours(row) for row in _transfers().filter(stripe_transfer_id__in=ids)}
    named = {each.stripe_transfer_id: operation_of(each) for each in facts if each.stripe_transfer_id not in found}
    left = {operation_id: stripe_id for stripe_id, operation_id in named.items() if operation_id is not None}
    if left:
        for row in _transfers().filter(operation_id__in=left):
            found[left[row.operation_id]] = _ours(row, has_its_id=False)
    return found


def _ours(row: SellerTransfer, *, has_its_id: bool = True) -> Ours:
    return Ours(transfer=row, reversals=list(row.reversals.all()), has_its_id=has_its_id)


def unseen(run_id: int, *, since: datetime | None, after: int, limit: int) -> list[tuple[int, str]]:
    """(pk, ``tr_…``), in that order, of rows that Stripe did not show in this run, though they are of its period."""
    rows = SellerTransfer.objects.filter(pk__gt=after).exclude(stripe_transfer_id="")
    if since is not None:
        rows = rows.filter(Q(created_at__gte=since) | Q(updated_at__gte=since, amount_reversed__gt=0))
    rows = rows.filter(_unseen(run_id, "stripe_transfer_id"))
    return list(rows.order_by("pk").values_list("pk", "stripe_transfer_id")[:limit])


def unseen_refunds(run: Reconciliation, *, after: int, limit: int) -> list[tuple[int, str]]:
    """(pk, ``ch_…`` of its order), in that order, of refunds of the period that did not fail, and that Stripe did not
    show.
    """
    rows = Refund.objects.filter(pk__gt=after, created_at__lte=run.until).exclude(stripe_refund_id="")
    rows = rows.exclude(status__in=clawback.NOT_REFUNDED).exclude(order__stripe_charge_id="")
    if run.since is not None:
        rows = rows.filter(created_at__gte=run.since)
    rows = rows.filter(_unseen(run.pk, "stripe_refund_id"))
    return list(rows.order_by("pk").values_list("pk", "order__stripe_charge_id")[:limit])


def _unseen(run_id: int, name: str) -> Any:
    return ~Exists(ReconciliationSubject.objects.filter(run=run_id, stripe_id=OuterRef(name)))


# --- Orders -----------------------------------------------------------------------------------------------------------


def _orders() -> QuerySet[Order]:
    return Order.objects.prefetch_related("refunds", "disputes", "transfers__seller", "transfers__reversals")


def of_charges(charges: Mapping[str, str]) -> dict[str, Order]:
    """By ``ch_…``: the order that was paid by it, or by its payment intent, which is given with each, or is empty. One
    look-up after the other, each by its index.
    """
    by_charge = _orders().filter(stripe_charge_id__in=list(charges))
    found = {order.stripe_charge_id: order for order in by_charge}
    left = {intent: charge for charge, intent in charges.items() if charge not in found and intent}
    if left:
        for order in _orders().filter(stripe_payment_intent_id__in=left):
            found[left[order.stripe_payment_intent_id]] = order
    return found


def order(pk: int) -> Order:
    return _orders().get(pk=pk)


def order_of_transfers(stripe_transfer_ids: Iterable[str]) -> Order | None:
    """The order of any of these transfers: rows of an older system need not know their charge."""
    return _orders().filter(transfers__stripe_transfer_id__in=list(stripe_transfer_ids)).first()


# --- Motion -----------------------------------------------------------------------------------------------------------


def moved(ours: Ours | None, noted_at: datetime, moment: datetime) -> bool:
    """Whether a worker holds the row at that ``moment``, or somebody has written it since it was noted."""
    if ours is None:
        return False
    expires = ours.transfer.lease_expires_at
    is_held = expires is not None and expires > moment
    return is_held or any(each.updated_at > noted_at for each in (ours.transfer, *ours.reversals))


def order_moved(order: Order, noted_at: datetime, moment: datetime) -> bool:
    told = (order, *order.refunds.all(), *order.disputes.all())
    transfers = [Ours(transfer=each, reversals=list(each.reversals.all())) for each in order.transfers.all()]
    return any(each.updated_at > noted_at for each in told) or any(moved(each, noted_at, moment) for each in transfers)
