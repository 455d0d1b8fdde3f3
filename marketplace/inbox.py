"""The inbox: store an event once; apply it through its service, effect and mark in one transaction."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import structlog
from django.db import OperationalError, connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from marketplace import correlation, tracing
from marketplace.backoff import RetryPolicy
from marketplace.errors import (
    DATABASE_TROUBLE,
    AlreadyThere,
    MalformedEvent,
    NotAllListed,
    NotAllowedNow,
    UnknownOrder,
    UnknownTransfer,
)
from marketplace.gateway import reading
from marketplace.gateway.contract import Failure, NotFound, Postponed, Refused, ReversalFacts
from marketplace.gateway.stripe_events import IncomingEvent
from marketplace.metrics import WEBHOOK_EVENTS
from marketplace.models import Order, Seller, WebhookEvent, together
from marketplace.services import disputes, funds, leases, outcomes, payments, refund_records, seen_at_stripe, sellers
from marketplace.states import EventStatus

logger = structlog.get_logger(__name__)

DUE = leases.Due(model=WebhookEvent, condition="status = 'failed' AND next_retry_at IS NOT NULL")
UNKNOWN_ORDER = "unknown_order"
UNKNOWN_TRANSFER = "unknown_transfer"
NOT_ALL_LISTED = "not_all_listed"
# A look that Stripe did not answer spends nothing, and comes again so soon.
LOOK_AGAIN = timedelta(minutes=5)
# Of the escapes that json.dumps writes: those that must not be taken apart or touched, and those that jsonb refuses.
ESCAPES = re.compile(
    r"(?P<fine>\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})|\\u(?:0000|d[89a-f][0-9a-f]{2})",
)


class Ignored(Exception):
    """The event is of no interest to us; the message says why."""


def receive(event: IncomingEvent) -> WebhookEvent:
    """Keep a verified event and apply it; committed on return. An event seen before gives the row of that time.

    An error while applying it is kept with the event, for the worker to try again: the caller has nothing to do.

    Raises:
        OperationalError, InterfaceError: the database is away; nothing is stored, so Stripe must send it again.

    """
    about = {"event": event.stripe_event_id, "type": event.type}
    with correlation.bound(event.stripe_event_id), tracing.span("apply event", **about):
        return _received(event)


def _received(event: IncomingEvent) -> WebhookEvent:
    try:
        row = _receive(event)
    except AlreadyThere:
        WEBHOOK_EVENTS.labels(outcome="duplicate").inc()
        row = WebhookEvent.objects.get(stripe_event_id=event.stripe_event_id)
        logger.info("webhook_event_duplicate", event_id=row.stripe_event_id, type=row.type, status=row.status)
        row.was_there = True
        return row
    WEBHOOK_EVENTS.labels(outcome=row.status).inc()
    logger.info("webhook_event", event_id=row.stripe_event_id, type=row.type, status=row.status, outcome=row.outcome)
    return row


def _receive(event: IncomingEvent) -> WebhookEvent:
    """At first straight ahead, in few messages to PostgreSQL. An error takes everything back, the event's row too, and
    then it is done step by step, so that the error stays with the event.
    """
    try:
        with together.committed_together():
            return _apply_straight(_store(event, outcome=_expected(event), text=event.text))
    except (AlreadyThere, *DATABASE_TROUBLE):
        raise
    except Exception as error:
        logger.debug("webhook_event_from_the_start", event_id=event.stripe_event_id, exc_info=error)
    with transaction.atomic(durable=True):
        return _apply(_store(event))


def _expected(event: IncomingEvent) -> str:
    """The outcome of nearly all refunds' events, so that it is written once; any other takes its place."""
    body = event.payload["data"]["object"]
    return _said_of_refund(body.get("id"), body.get("status")) if HANDLERS.get(event.type) is _refund else ""


def _store(event: IncomingEvent, *, outcome: str = "", text: str = "") -> WebhookEvent:
    """The new row, marked as processed until applying it shows otherwise. ``text`` is that of the payload, if at hand:
    it is stored as it is, unless an escape in it may be one that jsonb refuses.
    """
    is_storable = bool(text) and "\\u" not in text
    row = WebhookEvent.new(
        stripe_event_id=event.stripe_event_id,
        type=event.type,
        stripe_account_id=event.stripe_account_id,
        livemode=event.livemode,
        api_version=event.api_version,
        stripe_created_at=event.created_at,
        payload=event.payload if is_storable else _storable(event.payload),
        outcome=outcome,
    )
    as_text = {"payload": text} if is_storable else None
    row.add(actor="inbox", reason="received", once_by="stripe_event_id", as_text=as_text)
    return row


def _storable(payload: Mapping[str, Any]) -> Any:
    """The payload as PostgreSQL's jsonb can hold it: it refuses NUL and lone halves of surrogate pairs, and has the
    replacement character instead. An escaped backslash before the letters ``u0000`` is no NUL and stays.
    """
    text = json.dumps(payload, allow_nan=False)
    if "\\u0000" not in text and "\\ud" not in text:
        return payload
    mended = ESCAPES.sub(lambda found: found["fine"] or "\\ufffd", text)
    return payload if mended == text else json.loads(mended)


def claim(*, batch_size: int, lease: timedelta) -> list[WebhookEvent]:
    """Lease failed events that are due for another try; committed on return."""
    return leases.claim(WebhookEvent, due=DUE.condition, batch_size=batch_size, lease=lease)


def reversals_wanted(claimed: WebhookEvent) -> str:
    """Of which transfer (``tr_…``) Stripe has to be asked for all reversals before the event can be applied; mostly of
    none. The caller asks, for no transaction is open here.
    """
    return str(claimed.payload["data"]["object"]["id"]) if claimed.last_error_code == NOT_ALL_LISTED else ""


def not_looked_up(claimed: WebhookEvent, answer: Failure) -> WebhookEvent:
    """Stripe did not tell what the event lacks; committed on return. Raises as ``apply_again``."""
    with transaction.atomic(durable=True):
        row = leases.held(WebhookEvent, claimed.pk, claimed.lease_token)
        match answer:
            case NotFound() | Refused():
                _mark_failed(row, NOT_ALL_LISTED, NotAllListed(f"looking failed: {answer.message}"))
            case _:
                delay = timedelta(seconds=answer.seconds) if isinstance(answer, Postponed) else LOOK_AGAIN
                error = outcomes.error(NOT_ALL_LISTED, answer.message, answer.request_id)
                _mark(row, EventStatus.FAILED, answer.message, **error, next_retry_at=outcomes.in_(delay))
    return row


def apply_again(claimed: WebhookEvent, looked_up: tuple[ReversalFacts, ...] | None = None) -> WebhookEvent:
    """Try a claimed event again; committed on return. Raises ``StaleTransition`` where the lease was lost."""
    with transaction.atomic(durable=True):
        row = leases.held(WebhookEvent, claimed.pk, claimed.lease_token)
        row.looked_up = looked_up
        _apply(row)
    logger.info("webhook_event_again", event_id=row.stripe_event_id, type=row.type, status=row.status)
    return row


def replay(*, event_id: int, actor: str, reason: str, if_version: frozenset[str] | None = None) -> WebhookEvent:
    """Apply an event that failed or was ignored once more, because a person wants it; committed on return.

    It ends as anything that is received: applied, ignored, or failed with its error and a fresh budget of tries.

    Raises:
        ChangedMeanwhile: its version is none of ``if_version``.
        NotAllowedNow: it was applied, or a worker has it in hand.

    """
    with transaction.atomic(durable=True):
        row = WebhookEvent.locked(event_id)
        row.require_version(if_version)
        if row.status == EventStatus.PROCESSED:
            raise NotAllowedNow(f"{row} is processed: only one that failed or was ignored can be replayed")
        if WebhookEvent.objects.filter(pk=row.pk, lease_expires_at__gt=Now()).exists():
            raise NotAllowedNow(f"{row} is in a worker's hands just now")
        fresh = {"retry_count": 0, "next_retry_at": None, **leases.RELEASED}
        row.transition(
            EventStatus.PROCESSED, reason=reason, actor=actor, replay_count=row.replay_count + 1, outcome="", **fresh
        )
        _apply(row)
    logger.info("webhook_event_replayed", event_id=row.stripe_event_id, type=row.type, status=row.status, actor=actor)
    return row


def _apply_what_waited_for(order: Order) -> None:
    """Refunds and disputes whose events came before the payment's: now is their time, not at the end of their backoff.

    Also those that were given up: Stripe may bring the payment's event days later. In the payment's own transaction, so
    that none is forgotten between the two.
    """
    early = WebhookEvent.objects.select_for_update(skip_locked=True, no_key=True).filter(
        Q(payload__data__object__payment_intent=order.stripe_payment_intent_id)
        | Q(payload__data__object__charge=order.stripe_charge_id),
        status__in=[EventStatus.FAILED, EventStatus.IGNORED],
        last_error_code=UNKNOWN_ORDER,
        lease_token__isnull=True,
    )
    for row in early.order_by("id"):
        if row.status == EventStatus.IGNORED:
            row.transition(EventStatus.PROCESSED, reason="its order is paid now", actor="inbox", retry_count=0)
        _apply(row)


def _apply_straight(row: WebhookEvent) -> WebhookEvent:
    """As ``_apply``, without a way back to before the effect: an error is the caller's to take everything back."""
    try:
        outcome = _handle(row)
    except Ignored as reason:
        # Said before there was any effect.
        _mark(row, EventStatus.IGNORED, str(reason))
    else:
        if outcome != row.outcome:
            _mark(row, EventStatus.PROCESSED, outcome)
    return row


def _apply(row: WebhookEvent) -> WebhookEvent:
    """Apply the event and mark it, both inside the caller's transaction. What fails leaves its error, and no effect."""
    with correlation.bound(row.stripe_event_id):
        return _applied(row)


def _applied(row: WebhookEvent) -> WebhookEvent:
    try:
        try:
            outcome = _dispatch(row)
        except UnknownOrder:
            # Its payment may be just being taken in by somebody else, who cannot see this event yet.
            _not_beside_its_payment(row.payload["data"]["object"])
            outcome = _dispatch(row)
    except DATABASE_TROUBLE:
        raise
    except Exception as error:
        if transaction.get_rollback():
            # Not even the effect could be taken back: the database went away just then. Nothing can be written down.
            raise OperationalError("the database went away while an effect was taken back") from error
        _mark_not_applied(row, error)
    else:
        _mark(row, EventStatus.PROCESSED, outcome, **outcomes.CLEARED_ERROR)
    return row


def _mark_not_applied(row: WebhookEvent, error: Exception) -> None:
    match error:
        case Ignored():
            _mark(row, EventStatus.IGNORED, str(error))
        case UnknownOrder():
            _mark_failed(row, UNKNOWN_ORDER, error)
        case UnknownTransfer():
            _mark_failed(row, UNKNOWN_TRANSFER, error)
        case NotAllListed() if row.looked_up is None:
            wanted = outcomes.error(NOT_ALL_LISTED, str(error))
            _mark(row, EventStatus.FAILED, str(error), **wanted, next_retry_at=Now())
        case NotAllListed():
            _mark_failed(row, NOT_ALL_LISTED, error)
        case _:
            logger.error("webhook_event_failed", event_id=row.stripe_event_id, type=row.type, exc_info=error)
            _mark_failed(row, type(error).__name__, error)


def _mark(row: WebhookEvent, status: EventStatus, outcome: str, **fields: Any) -> None:
    fields = {"outcome": outcome[:500], "next_retry_at": None, **leases.RELEASED, **fields}
    if row.status == status:
        row.change(reason=outcome, actor="inbox", **fields)
    else:
        row.transition(status, reason=outcome, actor="inbox", **fields)


def _mark_failed(row: WebhookEvent, code: str, exception: Exception) -> None:
    """Try again later; at the end an order that never came is none of ours, and anything else is for a person."""
    error = outcomes.error(code, str(exception))
    policy = RetryPolicy.from_settings("REVERSAL")
    # A transfer of ours is settled some day, if by a person.
    if not policy.is_exhausted(row.retry_count) or code == UNKNOWN_TRANSFER:
        _mark(row, EventStatus.FAILED, str(exception), **error, **outcomes.next_try(row, policy))
    elif code == UNKNOWN_ORDER:
        _mark(row, EventStatus.IGNORED, f"no order of ours appeared: {exception}", **error)
    else:
        _mark(row, EventStatus.FAILED, str(exception), **error)
        logger.error("webhook_event_needs_a_person", event_id=row.stripe_event_id, type=row.type, code=code)


# --- What each type of event does -------------------------------------------------------------------------------------


def _not_beside_its_payment(body: Mapping[str, Any]) -> None:
    """Until the transaction ends, no other event takes this turn that is about the same payment or charge.

    A refund that finds no paid order is marked as waiting, and a payment applies all that wait for it. Side by side
    neither would see the other, and the refund would be left to its backoff, or for ever if that is spent.
    """
    named = [body.get(name) for name in ("id", "payment_intent", "charge", "latest_charge")]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT pg_advisory_xact_lock(turn)
            FROM (SELECT DISTINCT hashtextextended(name, 0) AS turn FROM unnest(%s::text[]) AS name ORDER BY 1) AS turns
            """,
            [[name for name in named if isinstance(name, str)]],
        )


def _dispatch(row: WebhookEvent) -> str:
    """Apply the event, as a whole or not at all: what fails is taken back, and the event with its error stays."""
    with transaction.atomic():
        return _handle(row)


def _handle(row: WebhookEvent) -> str:
    handler = HANDLERS.get(row.type)
    if handler is None:
        raise Ignored("this type is not used")
    if bool(row.stripe_account_id) != (row.type in CONNECTED_ACCOUNT_TYPES):
        raise Ignored(
            "this type is used for " + ("our own account only" if row.stripe_account_id else "connected accounts only")
        )
    try:
        return handler(row, row.payload["data"]["object"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedEvent(f"{row.type} of an unexpected shape: {type(error).__name__}: {error}") from error


def _payment_succeeded(row: WebhookEvent, body: Mapping[str, Any]) -> str:
    facts = reading.payment_facts(body, seen_at=row.stripe_created_at)
    _not_beside_its_payment(body)
    try:
        order = payments.record(facts, actor=_actor(row))
    except UnknownOrder as error:
        # Orders are written before their payment is asked for: one that we do not know is somebody else's.
        raise Ignored(str(error)) from error
    _apply_what_waited_for(order)
    return f"order {order.pk} is paid"


def _refund(row: WebhookEvent, body: Mapping[str, Any]) -> str:
    refund = refund_records.record(reading.refund_facts(body, seen_at=row.stripe_created_at), actor=_actor(row))
    return _said_of_refund(refund.stripe_refund_id, refund.status)


def _said_of_refund(stripe_refund_id: object, status: object) -> str:
    return f"{stripe_refund_id} is {status}"


def _charge_refunded(row: WebhookEvent, body: Mapping[str, Any]) -> str:
    """Since API version 2022-11-15 a charge no longer carries its refunds; older endpoints still send them."""
    listed = (body.get("refunds") or {}).get("data") or []
    if not listed:
        raise Ignored("it carries no refund: refund.created and refund.updated do")
    return "; ".join(_refund(row, refund) for refund in listed)


def _dispute(row: WebhookEvent, body: Mapping[str, Any]) -> str:
    facts = reading.dispute_facts(body, seen_at=row.stripe_created_at, event_type=row.type)
    dispute = disputes.record(facts, actor=_actor(row))
    return f"{dispute.stripe_dispute_id} is {dispute.status}"


def _transfer_reversed(row: WebhookEvent, body: Mapping[str, Any]) -> str:
    """The object is the transfer; which reversal is new is found among those that it lists."""
    facts = reading.transfer_facts(body)
    listed = reading.embedded_reversals(body) if row.looked_up is None else row.looked_up
    outcome = seen_at_stripe.record(facts, listed, actor=_actor(row))
    if outcome is None:
        raise Ignored(f"{facts.stripe_transfer_id} is no transfer of ours")
    return outcome


def _account_updated(row: WebhookEvent, body: Mapping[str, Any]) -> str:
    if not sellers.record(reading.account_facts(body, seen_at=row.stripe_created_at)):
        raise Ignored(f"{row.stripe_account_id} is no seller of ours, or we know newer")
    return f"{row.stripe_account_id} is up to date"


def _account_deauthorized(row: WebhookEvent, _body: Mapping[str, Any]) -> str:
    # The object is the application; the seller's account stands in the event's own field.
    if not sellers.record_deauthorized(row.stripe_account_id, at=row.stripe_created_at):
        raise Ignored(f"{row.stripe_account_id} is no connected seller of ours")
    return f"{row.stripe_account_id} is disconnected"


def _balance_available(row: WebhookEvent, body: Mapping[str, Any]) -> str:
    """Frequent, and mostly of sellers whom nothing waits for: then two questions of the database are all it costs."""
    facts = reading.balance_facts(body)
    seller = Seller.objects.filter(stripe_account_id=row.stripe_account_id).first()
    if seller is None or not funds.is_waited_for(seller):
        raise Ignored(f"no reversal waits for the balance of {row.stripe_account_id}")
    woken = funds.arrived(seller, facts.available, seen_at=row.stripe_created_at)
    return f"{woken} of the transfers that wait for the balance of {row.stripe_account_id} are due now"


def _actor(row: WebhookEvent) -> str:
    return f"stripe:{row.stripe_event_id}"


HANDLERS: Mapping[str, Callable[[WebhookEvent, Mapping[str, Any]], str]] = {
    "payment_intent.succeeded": _payment_succeeded,
    "refund.created": _refund,
    "refund.updated": _refund,
    "refund.failed": _refund,
    "charge.refund.updated": _refund,
    "charge.refunded": _charge_refunded,
    "charge.dispute.created": _dispute,
    "charge.dispute.updated": _dispute,
    "charge.dispute.funds_withdrawn": _dispute,
    "charge.dispute.funds_reinstated": _dispute,
    "charge.dispute.closed": _dispute,
    "transfer.reversed": _transfer_reversed,
    "account.updated": _account_updated,
    "account.application.deauthorized": _account_deauthorized,
    "balance.available": _balance_available,
}
CONNECTED_ACCOUNT_TYPES = frozenset({"account.updated", "account.application.deauthorized", "balance.available"})
