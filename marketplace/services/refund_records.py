"""What Stripe says of refunds, and what the sellers owe once one has succeeded."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog

from marketplace.errors import ConflictingFacts, MalformedEvent
from marketplace.gateway.contract import (
    RefundFacts,
)
from marketplace.models import Order, Refund, RefundItem, taking_back, together
from marketplace.services import clawback, leases, outcomes
from marketplace.shares import Loss
from marketplace.states import OrderStatus, RefundStatus

logger = structlog.get_logger(__name__)

# Of two facts of the same second the one further along is the newer.
RANK = {
    status: rank
    for rank, status in enumerate(
        (
            RefundStatus.REQUESTED,
            RefundStatus.PENDING,
            RefundStatus.REQUIRES_ACTION,
            RefundStatus.SUCCEEDED,
            RefundStatus.CANCELED,
            RefundStatus.FAILED,
        )
    )
}
# Requested is a word of ours, for what Stripe has not answered yet.
AT_STRIPE = {str(status): status for status in RefundStatus if status != RefundStatus.REQUESTED}


def record(facts: RefundFacts, *, actor: str) -> Refund:
    """What Stripe says of a refund, from an event, an answer or a list; runs in the caller's transaction.

    Facts only grow: the newest status wins, and that a refund has once succeeded stays true. So any order of events,
    any number of times, ends in the same place.

    Raises:
        UnknownOrder: a refund of a payment of which we have no paid order (yet).
        ConflictingFacts: another amount or currency than the refund's or the order's.
        MalformedEvent: a status that Stripe does not document.

    """
    status = _status(facts)
    found = _locked(facts)
    order, refunds = found.order, found.refunds
    with together.written_together():
        refund = _known(facts, refunds)
        counted = refund is not None and clawback.counts(refund)
        if refund is None:
            refused = _refused(facts, refunds)
            [loss] = clawback.losses([refused]) if refused else [clawback.loss(facts.amount, ())]
            parts = _parts(found, loss) if status == RefundStatus.SUCCEEDED else {}
            refund = _first_seen(facts, status, found, refused=refused, actor=actor, **parts)
            refunds.append(refund)
        elif (facts.amount, facts.currency) == (refund.amount, refund.currency):
            is_laid = status != RefundStatus.SUCCEEDED or refund.succeeded_at or refund.status in clawback.NOT_REFUNDED
            parts = {} if is_laid else _parts(found, *clawback.losses([refund]))
            _apply_status(refund, facts, status, actor=actor, **parts)
        else:
            raise ConflictingFacts(
                f"{facts.stripe_refund_id} at Stripe is {facts.amount} {facts.currency}, refund {refund.pk} is"
                f" {refund.amount} {refund.currency}"
            )
        has_changed = clawback.counts(refund) != counted
        # One for both: each reason that differs is a message more to PostgreSQL.
        reason = f"refund {refund.pk} {'succeeded' if has_changed and not counted else refund.status}"
        if has_changed:
            clawback.level(found, source=refund, actor=actor, reason=reason)
        _update_order(order, refunds, reason=reason, actor=actor)
    return refund


def _parts(found: taking_back.Found, loss: Loss) -> dict[str, Any]:
    sellers = clawback.parts(found, loss)
    return {"seller_parts": sellers, "platform_part": loss.amount - sum(sellers.values())}


def _status(facts: RefundFacts) -> RefundStatus:
    status = AT_STRIPE.get(facts.status)
    if status is None:
        raise MalformedEvent(f"refund {facts.stripe_refund_id} has the unknown status {facts.status!r}")
    return status


def _locked(facts: RefundFacts) -> taking_back.Found:
    return clawback.locked(
        f"{facts.stripe_refund_id} refunds",
        (taking_back.BY_PAYMENT_INTENT, facts.stripe_payment_intent_id),
        (taking_back.BY_CHARGE, facts.stripe_charge_id),
        (taking_back.BY_REFUND, facts.stripe_refund_id),
    )


def _known(facts: RefundFacts, refunds: Sequence[Refund]) -> Refund | None:
    """The row of this refund among those of its order: by Stripe's id, or by our operation id."""
    for refund in refunds:
        if refund.stripe_refund_id == facts.stripe_refund_id:
            return refund
    asked_for = _asked_for(facts, refunds)
    return asked_for if asked_for is not None and asked_for.status == RefundStatus.REQUESTED else None


def _asked_for(facts: RefundFacts, refunds: Sequence[Refund]) -> Refund | None:
    try:
        operation_id = UUID(facts.operation_id)
    except ValueError:
        return None
    return next((each for each in refunds if each.operation_id == operation_id and not each.stripe_refund_id), None)


def _refused(facts: RefundFacts, refunds: Sequence[Refund]) -> Refund | None:
    """The row of a refund that Stripe refused under its last key, though it was made under an earlier one: after a 500,
    which says nothing of what ran. That row is over.
    """
    refused = _asked_for(facts, refunds)
    is_same = refused is not None and (refused.amount, refused.currency) == (facts.amount, facts.currency)
    return refused if is_same else None


def _first_seen(
    facts: RefundFacts,
    status: RefundStatus,
    found: taking_back.Found,
    *,
    refused: Refund | None,
    actor: str,
    **parts: Any,
) -> Refund:
    """A new row for a refund that was made elsewhere; or by us, in place of the ``refused`` one, and of its goods."""
    order = found.order
    if facts.currency != order.currency or facts.amount > order.amount:
        raise ConflictingFacts(
            f"{facts.stripe_refund_id} is {facts.amount} {facts.currency},"
            f" order {order.pk} is {order.amount} {order.currency}"
        )
    refund = Refund.new(
        id=found.next_refund_id,
        order_id=order.pk,
        amount=facts.amount,
        currency=facts.currency,
        reason="made at Stripe",
        by_items=refused is not None and refused.by_items,
        status=status,
        stripe_refund_id=facts.stripe_refund_id,
        stripe_seen_at=facts.seen_at,
        succeeded_at=facts.seen_at if status == RefundStatus.SUCCEEDED else None,
        **parts,
    )
    refund.add(actor=actor, reason=f"first seen at Stripe: {_said(facts)}")
    if refused is not None and refused.by_items:
        goods = refused.items.values_list("item_id", "quantity", "amount")
        RefundItem.objects.bulk_create(
            RefundItem(refund_id=refund.id, item_id=item, quantity=quantity, amount=amount)
            for item, quantity, amount in goods
        )
    return refund


def _said(facts: RefundFacts) -> str:
    return f"Stripe says {facts.status}" + (f" ({facts.failure_reason})" if facts.failure_reason else "")


def _apply_status(refund: Refund, facts: RefundFacts, status: RefundStatus, *, actor: str, **parts: Any) -> None:
    known: dict[str, Any] = {"stripe_refund_id": facts.stripe_refund_id, **parts}
    if status == RefundStatus.SUCCEEDED:
        # The first time that Stripe told of, not the first that reached us.
        known["succeeded_at"] = min(refund.succeeded_at or facts.seen_at, facts.seen_at)
    is_newer = refund.stripe_seen_at is None or (facts.seen_at, RANK[status]) > (
        refund.stripe_seen_at,
        RANK[RefundStatus(refund.status)],
    )
    if is_newer:
        known["stripe_seen_at"] = facts.seen_at
    reason = _said(facts)
    settled = {"next_retry_at": None, **leases.RELEASED, **outcomes.CLEARED_ERROR}
    if is_newer and status != refund.status and status in refund.TRANSITIONS[RefundStatus(refund.status)]:
        refund.transition(status, reason=reason, actor=actor, **settled, **known)
    elif any(getattr(refund, name) != value for name, value in known.items()):
        refund.change(reason=reason, actor=actor, **known)


def _update_order(order: Order, refunds: Sequence[Refund], *, reason: str, actor: str) -> None:
    """The order's state follows from the refunds that stand as succeeded."""
    succeeded = sum(each.amount for each in refunds if each.status == RefundStatus.SUCCEEDED)
    amount_refunded = min(succeeded, order.amount)
    if amount_refunded == order.amount_refunded:
        return
    if amount_refunded == order.amount:
        status = OrderStatus.REFUNDED
    elif amount_refunded:
        status = OrderStatus.PARTIALLY_REFUNDED
    else:
        status = OrderStatus.PAID
    if status == order.status:
        order.change(reason=reason, actor=actor, amount_refunded=amount_refunded)
    else:
        order.transition(status, reason=reason, actor=actor, amount_refunded=amount_refunded)
