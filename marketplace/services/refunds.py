"""The buyer's refund: asked for by us, or told by Stripe; and what the sellers owe once it has succeeded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, assert_never
from uuid import UUID

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError, transaction
from django.db.models import Sum
from django.db.models.functions import Now

from marketplace import deadline
from marketplace.backoff import RetryPolicy
from marketplace.errors import (
    ConflictingFacts,
    MalformedEvent,
    NotAllowedNow,
    PlanChanged,
    StaleTransition,
    TooMuch,
)
from marketplace.gateway.contract import (
    Busy,
    CreateRefundAnswer,
    Denied,
    Failure,
    InsufficientFunds,
    NotFound,
    Postponed,
    RateLimited,
    RefundCreated,
    RefundFacts,
    RefundsListed,
    Refused,
    ServerError,
    TransferGateway,
    Unknown,
)
from marketplace.models import (
    REFUNDING_CHANNEL,
    Order,
    Refund,
    RefundItem,
    SellerTransfer,
    taking_back,
    together,
)
from marketplace.services import clawback, disputes, leases, outcomes
from marketplace.shares import Loss
from marketplace.states import OrderStatus, RefundStatus

logger = structlog.get_logger(__name__)

WORK = "refund"
DUE = leases.Due(model=Refund, condition="status = 'requested'", work=WORK, whom="'order ' || order_id")

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
GIVEN_UP = clawback.NOT_REFUNDED


@dataclass(frozen=True, kw_only=True)
class Requested:
    refund: Refund
    is_new: bool


# --- Asking -----------------------------------------------------------------------------------------------------------


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
    standing = RefundItem.objects.filter(refund__order=order).exclude(refund__status__in=GIVEN_UP)
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
    taken = order.refunds.exclude(status__in=GIVEN_UP).aggregate(total=Sum("amount"))["total"] or 0
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
    losses = clawback.losses([each for each in order.refunds.all() if each.status not in GIVEN_UP])
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


def send(refund: Refund, gateway: TransferGateway) -> Refund:
    """Ask Stripe for a refund just requested, and write down the answer. Without one it stays ``requested``: a worker
    goes on with the same key. Opens no transaction while Stripe is called.

    Nothing is sent any more after a lease's time: a worker may have looked and taken a new key, a day later.
    """
    with deadline.sending_until(deadline.clock() + settings.REVERSAL_LEASE.total_seconds()):
        answer = ask(refund, gateway)
    actor = f"user:{refund.requested_by.get_username()}" if refund.requested_by else "api"
    try:
        settle(refund, answer, actor=actor)
    except StaleTransition:
        logger.info("refund_settled_by_another", refund=refund.pk)
    return Refund.objects.get(pk=refund.pk)


def ask(refund: Refund, gateway: TransferGateway) -> CreateRefundAnswer:
    return gateway.create_refund(
        payment_intent=refund.order.stripe_payment_intent_id,
        amount=refund.amount,
        operation_id=refund.operation_id,
        idempotency_key=refund.idempotency_key,
    )


# --- Working on requests that Stripe has not answered -----------------------------------------------------------------


def claim(*, batch_size: int, lease: timedelta, past_breaker: bool = False) -> list[Refund]:
    """Lease requested refunds that are due; committed on return."""
    return leases.claim(
        Refund,
        due=DUE.condition,
        batch_size=batch_size,
        lease=lease,
        work=WORK,
        past_breaker=past_breaker,
        whom=DUE.whom,
    )


def must_look(refund: Refund) -> bool:
    first = refund.first_attempted_at
    return refund.look_first or (first is not None and refund.claimed_at - first > outcomes.KEY_REUSE_WINDOW)


def find(refund: Refund, listed: RefundsListed) -> RefundFacts | None:
    return next((facts for facts in listed.refunds if facts.operation_id == str(refund.operation_id)), None)


def begin_generation(claimed: Refund) -> Refund:
    """As for transfers: a new key, once a look at Stripe found nothing. Raises ``StaleTransition``."""
    with transaction.atomic(durable=True):
        refund = leases.held(Refund, claimed.pk, claimed.lease_token)
        refund.change(
            actor="refund worker",
            reason="not found at Stripe",
            held_by=claimed.lease_token,
            key_generation=refund.key_generation + 1,
            first_attempted_at=Now(),
            look_first=False,
        )
        refund.claimed_at, refund.is_probe = claimed.claimed_at, claimed.is_probe
        return refund


def settle(
    claimed: Refund, answer: CreateRefundAnswer, *, actor: str, stripe_is_down: bool = False
) -> outcomes.Settled:
    """Write down what Stripe answered to a refund that was asked for; committed on return.

    ``stripe_is_down``: Stripe gave no answer here, nor to a question that has nothing to do with this row.

    Raises:
        StaleTransition: the row is no longer as it was claimed; nothing was changed.

    """
    with transaction.atomic(durable=True):
        is_breaker_open = False
        if isinstance(answer, RefundCreated):
            refund = _settle_created(claimed, answer.refund, actor=actor)
        else:
            refund = _still_asking(claimed)
            is_breaker_open = outcomes.count_failure(
                WORK,
                answer,
                channel=REFUNDING_CHANNEL,
                whom=f"order {refund.order_id}",
                stripe_is_down=stripe_is_down,
                is_probe=claimed.is_probe,
            )
            _settle_failure(refund, answer, actor=actor, spends=not is_breaker_open)
        outcomes.count_success(WORK, answer)
    return outcomes.Settled(status=refund.status, is_breaker_open=is_breaker_open)


def _settle_failure(refund: Refund, answer: Failure, *, actor: str, spends: bool) -> None:
    match answer:
        case NotFound() | Refused(code="resource_missing"):
            # Another account's or mode's key, perhaps: no answer to whether an earlier send got through.
            _try_again(refund, outcomes.error_of(answer), actor=actor, look_first=True)
        case Refused():
            error = outcomes.error_of(answer)
            refund.transition(
                RefundStatus.FAILED,
                reason=f"{error['last_error_code']}: {error['last_error_message']}",
                actor=actor,
                next_retry_at=None,
                **leases.RELEASED,
                **error,
            )
        case Busy() | RateLimited():
            _stay(
                refund,
                outcomes.error_of(answer),
                actor=actor,
                next_retry_at=outcomes.in_(outcomes.BUSY_DELAY),
            )
        case Postponed():
            due = outcomes.in_(timedelta(seconds=answer.seconds))
            _stay(refund, outcomes.error_of(answer), actor=actor, next_retry_at=due)
        case Denied():
            _stay(refund, outcomes.error_of(answer), actor=actor, next_retry_at=Now())
        case InsufficientFunds() | ServerError():
            _try_again(refund, outcomes.error_of(answer), actor=actor, spends=spends, look_first=True)
        case Unknown():
            _try_again(refund, outcomes.error_of(answer), actor=actor, spends=spends)
        case _:
            assert_never(answer)


def _settle_created(claimed: Refund, facts: RefundFacts, *, actor: str) -> Refund:
    """Facts are facts, whoever holds the lease. Those that contradict ours are kept with the row, for a person."""
    try:
        with transaction.atomic():
            return record(facts, actor=actor)
    except (ConflictingFacts, MalformedEvent) as conflict:
        if transaction.get_rollback():
            # Not even what was begun could be taken back: the database went away just then. The settle comes again.
            raise OperationalError("the database went away while facts were taken back") from conflict
        error = outcomes.error("conflicting_facts", conflict.message)
        refund = _still_asking(claimed)
        _try_again(refund, error, actor=actor)
        logger.exception("refund_needs_a_person", refund=claimed.pk, code="conflicting_facts")
        return refund


def settle_unexpected(claimed: Refund, exception: Exception, *, actor: str) -> None:
    error = outcomes.error("unexpected_error", f"{type(exception).__name__}: {exception}")
    with transaction.atomic(durable=True):
        _try_again(_still_asking(claimed), error, actor=actor)


def _still_asking(claimed: Refund) -> Refund:
    refund = (
        Refund.objects.select_for_update(no_key=True).filter(pk=claimed.pk, lease_token=claimed.lease_token).first()
    )
    if refund is None or refund.status != RefundStatus.REQUESTED:
        raise StaleTransition(f"refund {claimed.pk} is no longer ours to ask for")
    return refund


def _try_again(refund: Refund, error: dict[str, Any], *, actor: str, spends: bool = True, **fields: Any) -> None:
    """The buyer was promised the money, and unknown is not failed: this never gives up, at the pace of the maximum.

    While Stripe fails for everyone it is due at once: the breaker holds it back.
    """
    if not spends:
        _stay(refund, error, actor=actor, next_retry_at=Now(), **fields)
        return
    policy = RetryPolicy.from_settings("REVERSAL")
    _stay(refund, error, actor=actor, **outcomes.next_try(refund, policy), **fields)


def _stay(refund: Refund, error: dict[str, Any], *, actor: str, **fields: Any) -> None:
    refund.change(
        reason=error["last_error_code"],
        actor=actor,
        attempt=refund.retry_count + 1,
        **leases.RELEASED,
        **error,
        **fields,
    )


# --- Recording --------------------------------------------------------------------------------------------------------


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
            is_laid = status != RefundStatus.SUCCEEDED or refund.succeeded_at or refund.status in GIVEN_UP
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
