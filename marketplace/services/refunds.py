"""The buyer's refund that we are asked for: what it may be, who bears which part, and its row."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Sum
from django.db.models.functions import Now

from marketplace.errors import ConflictingFacts, NotAllowedNow, PlanChanged, TooMuch
from marketplace.models import Order, Refund, RefundItem, SellerTransfer
from marketplace.services import clawback, disputes, outcomes
from marketplace.states import OrderStatus

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Requested:
    refund: Refund
    is_new: bool


def request(
    *,
    order_id: int,
    amount: int,
    currency: str,
    reason: str,
    requested_by: User,
    request_key: str,
    plan_version: str = "",
    items: Sequence[tuple[int, int]] = (),
) -> Requested:
    """Write down that a refund is to be asked for, before Stripe is; committed on return.

    The same key with the same facts gives the refund of the first request. With a ``plan_version`` it is asked for only
    if the sellers' parts are still those of that plan. ``items``, as (order item, quantity), are what is refunded:
    their sellers alone bear it, and ``amount`` is what they cost.

    Raises:
        Order.DoesNotExist: no such order.
        ConflictingFacts: the key was used with other facts, the currency is not the order's, or the items are not, or
            cost another amount.
        NotAllowedNow: the order is not paid.
        TooMuch: more than is left to refund.
        PlanChanged: the order is not as it was when the refund was planned, or the plan was for another amount.

    """
    with transaction.atomic(durable=True):
        order = Order.locked(order_id)
        earlier = Refund.objects.filter(requested_by=requested_by, request_key=request_key).first()
        if earlier is not None:
            same_items = set(earlier.items.values_list("item_id", "quantity")) == set(items)
            if not same_items or (earlier.order_id, earlier.amount, earlier.currency, earlier.reason) != (
                order.pk,
                amount,
                currency,
                reason,
            ):
                raise _used_before(request_key)
            return Requested(refund=earlier, is_new=False)
        if currency != order.currency:
            raise ConflictingFacts(f"order {order.pk} is in {order.currency}, not {currency}")
        _check(order, amount)
        chosen = choose(order, items)
        if chosen and sum(each.amount for each in chosen) != amount:
            raise ConflictingFacts(f"these items of order {order.pk} do not cost {amount} {currency}")
        if plan_version and planned(order, amount, chosen).version != plan_version:
            raise PlanChanged(
                f"order {order.pk} is not as it was when a refund of {amount} {order.currency} was planned, or the plan"
                " was for another amount: nothing was asked for; look at a new plan first"
            )
        try:
            with Refund.recording(actor=f"user:{requested_by.get_username()}", reason=reason or "requested"):
                refund = Refund.objects.create(
                    order=order,
                    amount=amount,
                    currency=currency,
                    by_items=bool(chosen),
                    reason=reason,
                    requested_by=requested_by,
                    request_key=request_key,
                    # The caller sends it now. A worker takes over if the caller dies, not while it waits for Stripe.
                    next_retry_at=outcomes.in_(settings.REVERSAL_LEASE),
                    first_attempted_at=Now(),
                )
                for each in chosen:
                    each.refund = refund
                RefundItem.objects.bulk_create(chosen)
        except IntegrityError as error:
            if "refund_once_per_request_key" not in str(error):
                raise
            # For another order, at this very moment: those for this one wait for its lock.
            raise _used_before(request_key) from error
    refund.refresh_from_db()
    return Requested(refund=refund, is_new=True)


def _used_before(request_key: str) -> ConflictingFacts:
    return ConflictingFacts(f"Idempotency-Key {request_key!r} was used before, with another request")


def choose(order: Order, items: Sequence[tuple[int, int]]) -> list[RefundItem]:
    """Rows, not written yet, for (order item, quantity).

    Raises:
        ConflictingFacts: not an item of this order, or one that is named twice.
        TooMuch: more of an item than was sold and not refunded, or is about to be.

    """
    if not items:
        return []
    sold = {item.pk: item for item in order.items.all()}
    standing = RefundItem.objects.filter(refund__order=order).exclude(refund__status__in=clawback.NOT_REFUNDED)
    refunded = dict(standing.values_list("item_id").annotate(total=Sum("quantity")).order_by())
    chosen = {}
    for number, quantity in items:
        if number not in sold or number in chosen:
            raise ConflictingFacts(f"{number} is not an item of order {order.pk}, or is named twice")
        item = sold[number]
        left = item.quantity - refunded.get(number, 0)
        if quantity > left:
            raise TooMuch(f"{quantity} is more than the {left} of item {number} left to refund on order {order.pk}")
        chosen[number] = RefundItem(item=item, quantity=quantity, amount=quantity * item.unit_amount)
    return list(chosen.values())


def _check(order: Order, amount: int) -> None:
    if order.status == OrderStatus.PENDING:
        raise NotAllowedNow(f"order {order.pk} is not paid, so there is nothing to refund")
    if not order.stripe_payment_intent_id:
        raise NotAllowedNow(f"order {order.pk} has no payment intent, so Stripe cannot be asked to refund it")
    refused = next((each for each in order.disputes.all() if disputes.refuses_refunds(each)), None)
    if refused is not None:
        raise NotAllowedNow(
            f"order {order.pk} is disputed ({refused.stripe_dispute_id} is {refused.status}): Stripe refunds no charge"
            " that was charged back"
        )
    left = refundable(order)
    if amount > left:
        raise TooMuch(f"{amount} is more than the {left} {order.currency} left to refund on order {order.pk}")


def refundable(order: Order) -> int:
    """Minor units of the order that no refund has taken, or is about to take, and no dispute."""
    taken = order.refunds.exclude(status__in=clawback.NOT_REFUNDED).aggregate(total=Sum("amount"))["total"] or 0
    lost = order.disputes.aggregate(total=Sum("amount_lost"))["total"] or 0
    return max(order.amount - taken - lost, 0)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a refund would take of one transfer, and what was taken of it before (never sent, owed, or come back)."""

    transfer: SellerTransfer
    amount: int
    taken: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A refund that nobody has asked for yet, in minor units; ``version`` changes with anything that decides it."""

    version: str
    parts: list[Part]
    platform_amount: int


def planned(order: Order, amount: int, chosen: Sequence[RefundItem] = ()) -> Planned:
    """Who would bear a refund of ``amount``, or of the ``chosen`` items that cost it, if it were asked for now, those
    under way taken to succeed first.

    Raises:
        NotAllowedNow: the order is not paid.
        TooMuch: more than is left to refund.

    """
    _check(order, amount)
    transfers = list(order.transfers.order_by("id").prefetch_related("reversals"))
    losses = clawback.losses([each for each in order.refunds.all() if each.status not in clawback.NOT_REFUNDED])
    losses += clawback.lost_by(order.disputes.all())
    loss = clawback.loss(amount, [(item.item.seller_id, item.amount) for item in chosen])
    holdings = [clawback.holding(transfer, transfer.reversals.all()) for transfer in transfers]
    # What those under way will take as well.
    more = clawback.plan(order, losses, holdings)
    taken = [each.taken for each in holdings]
    before = [gone + part for gone, part in zip(taken, more, strict=True)]
    holdings = [replace(each, taken=gone) for each, gone in zip(holdings, before, strict=True)]
    due = clawback.plan(order, [*losses, loss], holdings)
    counted = sum(each.amount for each in losses)
    of_goods = sorted((item.item_id, item.quantity) for item in chosen)
    parts_of = [[row.pk, *of] for row, *of in zip(transfers, before, due, strict=True)]
    decides = [order.pk, amount, counted, of_goods, parts_of]
    return Planned(
        version=hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32],
        parts=[
            Part(transfer=transfer, amount=part, taken=gone)
            for transfer, part, gone in zip(transfers, due, taken, strict=True)
        ],
        platform_amount=amount - sum(due),
    )
