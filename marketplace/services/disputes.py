"""What Stripe tells of a dispute, and what of it counts as lost: that the sellers bear, as of a refund."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction

from marketplace.errors import NotAllowedNow, TooMuch
from marketplace.gateway.contract import DisputeFacts
from marketplace.models import Dispute, Order, taking_back, together
from marketplace.services import clawback
from marketplace.shares import Loss

logger = structlog.get_logger(__name__)

# The setting: from when on an open dispute counts; one that is lost counts in any case.
OPENED, FUNDS_WITHDRAWN, LOST = "opened", "funds_withdrawn", "lost"
# The buyer's bank has given up, or only asked (docs.stripe.com/api/disputes/object).
IN_OUR_FAVOUR = frozenset({"won", "prevented", "warning_closed"})
# Of two facts of the same second the one further along is the newer. A word that we do not know is of an open one.
RANK = {
    status: rank
    for rank, status in enumerate(
        (
            "warning_needs_response",
            "warning_under_review",
            "needs_response",
            "under_review",
            "appeal_needs_response",
            "appeal_under_review",
            "warning_closed",
            "prevented",
            LOST,
            "won",
        )
    )
}
_OPEN_RANK = RANK["appeal_under_review"]
# What a person has to tell: how much of the order it is.
ANOTHER_CURRENCY = "dispute_in_another_currency"
# What only grows.
_GROWING = ("amount_withdrawn", "amount_reinstated", "fee", "balance_currency", "times_withdrawn")


def record(facts: DisputeFacts, *, actor: str) -> Dispute:
    """What Stripe says of a dispute; runs in the caller's transaction.

    The newest fact wins, and money that has moved stays moved. So any order of events, any number of times, ends in the
    same place.

    Raises ``UnknownOrder``: a dispute of a payment of which we have no paid order (yet).
    """
    found = clawback.locked(
        f"{facts.stripe_dispute_id} disputes",
        (taking_back.BY_PAYMENT_INTENT, facts.stripe_payment_intent_id),
        (taking_back.BY_CHARGE, facts.stripe_charge_id),
        (taking_back.BY_DISPUTE, facts.stripe_dispute_id),
    )
    known = next((each for each in found.disputes if each.stripe_dispute_id == facts.stripe_dispute_id), None)
    reason = f"Stripe says {facts.status}"
    with together.written_together():
        if known is not None:
            return _update(known, _told(facts, known), found, reason=reason, actor=actor)
        dispute = _new(facts, found.order)
        dispute = _with(dispute, _borne(dispute, found))
        dispute.add(actor=actor, reason=f"first seen at Stripe: {reason}")
        # Now it gets its number, which what is owed for it names.
        together.ask()
        found.disputes.append(dispute)
        return _follow(dispute, found, Dispute(), actor=actor)


def enter_amount(
    *, dispute_id: int, amount: int, actor: str, reason: str, if_version: frozenset[str] | None = None
) -> Dispute:
    """A person says how much of the order (minor units of its currency) a dispute in another currency is about;
    committed on return.

    Raises:
        Dispute.DoesNotExist: no such dispute.
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: it is in the order's currency, or the amount was entered before.
        TooMuch: more than the order.

    """
    with transaction.atomic(durable=True):
        found = taking_back.found(taking_back.BY_ID, Dispute.objects.get(pk=dispute_id).order_id)
        assert found is not None
        dispute = next(each for each in found.disputes if each.pk == dispute_id)
        dispute.require_version(if_version)
        order = found.order
        if dispute.order_amount is not None:
            raise NotAllowedNow(
                f"{dispute} is about {dispute.order_amount} {order.currency} of order {order.pk}: an amount is entered"
                " once, and only where it is in another currency"
            )
        if amount > order.amount:
            raise TooMuch(f"{amount} is more than order {order.pk}, which is {order.amount} {order.currency}")
        with together.written_together():
            _update(dispute, {"entered_amount": amount}, found, reason=reason, actor=actor)
    logger.info("dispute_amount_entered", dispute=dispute_id, amount=amount, actor=actor)
    return dispute


def foreseen(facts: DisputeFacts, known: Dispute | None, order: Order) -> Dispute | None:
    """The row as ``record`` would make it, but for who bears it; not saved. None where it says all of this already."""
    if known is None:
        return _new(facts, order)
    told = _told(facts, known)
    is_news = any(value != getattr(known, name) for name, value in told.items() if name != "stripe_seen_at")
    return _as_counted(_with(known, told), order) if is_news else None


def refuses_refunds(dispute: Dispute) -> bool:
    """Whether Stripe refunds nothing of its charge: 400 ``charge_disputed``."""
    return not dispute.is_charge_refundable and dispute.status not in IN_OUR_FAVOUR


# --- What is told -----------------------------------------------------------------------------------------------------


def _new(facts: DisputeFacts, order: Order) -> Dispute:
    """Of which we have not heard before, with what counts of it."""
    told = {"opened_at": facts.opened_at, **_latest(facts), **_grown(facts, None)}
    return _as_counted(Dispute(order=order, stripe_dispute_id=facts.stripe_dispute_id, **told), order)


def _told(facts: DisputeFacts, known: Dispute) -> dict[str, Any]:
    """What of a known row changes by these facts."""
    told = _grown(facts, known)
    if _age(facts, facts.seen_at) > _age(known, known.stripe_seen_at):
        told |= _latest(facts)
    return told


def _latest(facts: DisputeFacts) -> dict[str, Any]:
    return {
        "status": facts.status,
        "amount": facts.amount,
        "currency": facts.currency,
        "stripe_reason": facts.stripe_reason,
        "is_charge_refundable": facts.is_charge_refundable,
        "evidence_due_by": facts.evidence_due_by,
        "stripe_seen_at": facts.seen_at,
    }


def _grown(facts: DisputeFacts, known: Dispute | None) -> dict[str, Any]:
    grown = {name: getattr(facts, name) for name in _GROWING}
    if known is not None:
        grown = {name: max(value, getattr(known, name)) for name, value in grown.items()}
    is_closed = facts.status == LOST or facts.status in IN_OUR_FAVOUR
    for name, is_so in (
        ("withdrawn_at", facts.is_withdrawn),
        ("reinstated_at", facts.is_reinstated),
        ("closed_at", is_closed),
    ):
        # The first time that Stripe told of, not the first that reached us.
        before = None if known is None else getattr(known, name)
        grown[name] = min(before or facts.seen_at, facts.seen_at) if is_so else before
    return grown


def _age(said: DisputeFacts | Dispute, at: datetime) -> tuple[Any, ...]:
    """Grows with time. What is told of one second has an order too, whatever comes first."""
    due_by = said.evidence_due_by
    return (
        at,
        RANK.get(said.status, _OPEN_RANK),
        said.status,
        said.amount,
        said.currency,
        said.stripe_reason,
        said.is_charge_refundable,
        due_by or datetime.min.replace(tzinfo=UTC),
    )


# --- What counts ------------------------------------------------------------------------------------------------------


def _as_counted(dispute: Dispute, order: Order) -> Dispute:
    """With what counts as lost by one that is as told, or that a person has to say it."""
    of_order = dispute.amount if dispute.currency == order.currency else dispute.entered_amount
    counts = _counts(dispute)
    is_unclear = counts and of_order is None
    message = (
        f"{dispute.stripe_dispute_id} is {dispute.amount} {dispute.currency}, order {order.pk} is in {order.currency}:"
        " enter how much of the order it is"
    )
    counted = {
        "order_amount": of_order,
        "amount_lost": lost(dispute, of_order) if counts and of_order is not None else 0,
        "last_error_code": ANOTHER_CURRENCY if is_unclear else "",
        "last_error_message": message if is_unclear else "",
    }
    return _with(dispute, counted)


def _borne(dispute: Dispute, found: taking_back.Found) -> dict[str, Any]:
    """Who bears what is lost by it."""
    others = [each for each in found.disputes if each.pk != dispute.pk]
    sellers = clawback.parts(replace(found, disputes=others), Loss(amount=dispute.amount_lost))
    return {"seller_parts": sellers, "platform_part": dispute.amount_lost - sum(sellers.values())}


def _counts(dispute: Dispute) -> bool:
    """Whether it counts as lost. Of an inquiry no money has moved, and most come to nothing: it counts once it has."""
    if dispute.status in IN_OUR_FAVOUR:
        return False
    if dispute.status == LOST:
        return True
    is_withdrawn = dispute.withdrawn_at is not None
    if settings.DISPUTE_CLAWBACK_ON == OPENED:
        return is_withdrawn or not dispute.status.startswith("warning_")
    return settings.DISPUTE_CLAWBACK_ON == FUNDS_WITHDRAWN and is_withdrawn


def lost(dispute: Dispute | DisputeFacts, of_order: int) -> int:
    """What of so much ``of_order`` one that counts has cost: less what Stripe gave back and did not take again, in
    proportion, for that may be in a third currency.
    """
    withdrawn = dispute.amount_withdrawn
    if not withdrawn or not of_order:
        return of_order
    gone = max(withdrawn - dispute.amount_reinstated, 0)
    # Given back and taken again it was withdrawn twice, and is lost once.
    is_comparable = dispute.amount and dispute.balance_currency == dispute.currency
    once = min(withdrawn, dispute.amount) if is_comparable else withdrawn // max(dispute.times_withdrawn, 1)
    return of_order - of_order * max(once - gone, 0) // once


def _update(dispute: Dispute, told: dict[str, Any], found: taking_back.Found, *, reason: str, actor: str) -> Dispute:
    """The row with what was told, what of it counts now, and what follows for the sellers."""
    before = _with(dispute, {})
    now = _as_counted(_with(dispute, told), found.order)
    now = _with(now, _borne(now, found))
    changed = {name: value for name, value in _columns(now).items() if value != getattr(dispute, name)}
    status = changed.pop("status", None)
    if status is not None:
        dispute.transition(status, reason=reason, actor=actor, **changed)
    elif changed:
        dispute.change(reason=reason, actor=actor, **changed)
    return _follow(dispute, found, before, actor=actor)


def _with(dispute: Dispute, told: dict[str, Any]) -> Dispute:
    """Another of the same columns but for those ``told``."""
    return Dispute(**_columns(dispute) | told)


def _columns(dispute: Dispute) -> dict[str, Any]:
    return {field.attname: getattr(dispute, field.attname) for field in Dispute._meta.concrete_fields}


def _follow(dispute: Dispute, found: taking_back.Found, before: Dispute, *, actor: str) -> Dispute:
    if dispute.last_error_code and not before.last_error_code:
        logger.error("dispute_needs_a_person", dispute=dispute.pk, code=dispute.last_error_code)
    if dispute.amount_lost != before.amount_lost:
        lost = f"{dispute} is {dispute.status}: {dispute.amount_lost} {found.order.currency} lost"
        clawback.level(found, source=dispute, actor=actor, reason=lost)
    return dispute
