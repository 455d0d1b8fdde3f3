"""From Stripe's objects, as plain data, to facts: of what calls answer, and of what events bring."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from marketplace.gateway.contract import (
    AccountFacts,
    BalanceFacts,
    BookedFacts,
    ChargeFacts,
    DisputeFacts,
    EventsListed,
    ListedDispute,
    ListedEntry,
    ListedEvent,
    ListedRefund,
    ListedTransfer,
    Page,
    PaymentFacts,
    RefundFacts,
    ReversalFacts,
    TransferFacts,
)
from marketplace.money import LARGEST_AMOUNT

P = TypeVar("P")

# Names in the metadata that we send.
OPERATION_ID = "operation_id"
ORDER_OPERATION_ID = "order_operation_id"


def payment_facts(body: Mapping[str, Any], *, seen_at: datetime | None = None) -> PaymentFacts:
    """Raises ``KeyError``, ``TypeError`` or ``ValueError`` where the body is not a payment intent."""
    return PaymentFacts(
        stripe_payment_intent_id=_text(body["id"]),
        stripe_charge_id=_reference(body.get("latest_charge")),
        amount_received=_whole(body["amount_received"]),
        currency=_text(body["currency"]),
        status=_text(body["status"]),
        order_operation_id=_metadata(body, ORDER_OPERATION_ID),
        paid_at=seen_at or _time(body["created"]),
    )


def refund_facts(body: Mapping[str, Any], *, seen_at: datetime | None = None) -> RefundFacts:
    """Without ``seen_at`` the facts are those of the refund's creation, which is what a create call answers (and
    replays). Raises as ``payment_facts``.
    """
    return RefundFacts(
        stripe_refund_id=_text(body["id"]),
        stripe_payment_intent_id=_reference(body.get("payment_intent")),
        stripe_charge_id=_reference(body.get("charge")),
        amount=_whole(body["amount"]),
        currency=_text(body["currency"]),
        status=_text(body["status"]),
        operation_id=_metadata(body, OPERATION_ID),
        failure_reason=_text_or_none(body.get("failure_reason")),
        seen_at=seen_at or _time(body["created"]),
    )


def dispute_facts(body: Mapping[str, Any], *, seen_at: datetime, event_type: str) -> DisputeFacts:
    """Raises as ``payment_facts``. ``balance_transactions`` are those of our balance: none before money moved, and the
    fee is in none of their amounts (docs.stripe.com/api/disputes/object).
    """
    entries = body.get("balance_transactions") or []
    moved = [_signed(each["amount"]) for each in entries]
    withdrawn, reinstated = -sum(each for each in moved if each < 0), sum(each for each in moved if each > 0)
    due_by = (body.get("evidence_details") or {}).get("due_by")
    return DisputeFacts(
        stripe_dispute_id=_text(body["id"]),
        stripe_payment_intent_id=_reference(body.get("payment_intent")),
        stripe_charge_id=_reference(body.get("charge")),
        amount=_whole(body["amount"]),
        currency=_text(body["currency"]),
        status=_text(body["status"]),
        stripe_reason=_text_or_none(body.get("reason")),
        is_charge_refundable=_truth(body.get("is_charge_refundable", False)),
        evidence_due_by=None if due_by is None else _time(due_by),
        amount_withdrawn=withdrawn,
        amount_reinstated=reinstated,
        # Below zero where Stripe gives it back.
        fee=max(sum(_signed(each["fee"]) for each in entries), 0),
        balance_currency=_text(entries[0]["currency"]) if entries else "",
        times_withdrawn=_times_withdrawn(entries),
        is_withdrawn=withdrawn > 0 or event_type == "charge.dispute.funds_withdrawn",
        is_reinstated=reinstated > 0 or event_type == "charge.dispute.funds_reinstated",
        opened_at=_time(body["created"]),
        seen_at=seen_at,
    )


def _times_withdrawn(entries: Sequence[Mapping[str, Any]]) -> int:
    times, is_gone = 0, False
    for entry in sorted(entries, key=lambda each: _whole(each.get("created", 0))):
        if entry["amount"]:
            was_gone, is_gone = is_gone, entry["amount"] < 0
            times += is_gone and not was_gone
    return times


def account_facts(body: Mapping[str, Any], *, seen_at: datetime | None = None) -> AccountFacts:
    """Without ``seen_at`` the facts are those of the account's creation, by Stripe's clock as the events are. Where it
    is not told, every event is newer. Raises as ``payment_facts``.
    """
    capabilities, created = body.get("capabilities") or {}, body.get("created")
    return AccountFacts(
        stripe_account_id=_text(body["id"]),
        transfers_capability=_text(capabilities.get("transfers", "unrequested")),
        payouts_enabled=_truth(body.get("payouts_enabled", False)),
        seen_at=seen_at or _time(0 if created is None else created),
    )


def balance_facts(body: Mapping[str, Any]) -> BalanceFacts:
    """Raises as ``payment_facts``. A currency stands there once; were it twice, both would count."""
    available: dict[str, int] = {}
    for part in body["available"]:
        currency = _text(part["currency"])
        available[currency] = available.get(currency, 0) + _signed(part["amount"])
    return BalanceFacts(available=available)


def listed_events(body: Mapping[str, Any], stripe_account: str) -> EventsListed:
    return EventsListed(
        events=tuple(_listed_event(each, stripe_account) for each in body["data"]), has_more=_truth(body["has_more"])
    )


def _listed_event(body: dict[str, Any], stripe_account: str) -> ListedEvent:
    """Whether an account's own list names the account too is not documented; a webhook of it does."""
    if stripe_account and not body.get("account"):
        body = {**body, "account": stripe_account}
    return ListedEvent(stripe_event_id=_text(body["id"]), created_at=_time(body["created"]), body=body)


def transfer_facts(body: Mapping[str, Any]) -> TransferFacts:
    """Raises as ``payment_facts``."""
    amount, amount_reversed = _whole(body["amount"]), _whole(body["amount_reversed"])
    if amount_reversed > amount:
        raise ValueError("more is reversed than was transferred")
    return TransferFacts(
        stripe_transfer_id=_text(body["id"]),
        amount=amount,
        amount_reversed=amount_reversed,
        currency=_text(body["currency"]),
        operation_id=_metadata(body, OPERATION_ID),
        destination=_text_or_none(body.get("destination")),
    )


def embedded_reversals(body: Mapping[str, Any]) -> tuple[ReversalFacts, ...]:
    """Those that stand in the transfer itself: the ten newest at most, the newest first
    (docs.stripe.com/api/transfer_reversals/list). Raises as ``payment_facts``.
    """
    return tuple(map(reversal_facts, (body.get("reversals") or {}).get("data") or ()))


def page(body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], P]) -> Page[P]:
    listed = body["data"]
    return Page(
        items=tuple(map(read, listed)),
        has_more=_truth(body["has_more"]),
        last_id=_text(listed[-1]["id"]) if listed else "",
    )


def listed_transfer(body: Mapping[str, Any]) -> ListedTransfer:
    booked = body.get("balance_transaction")
    return ListedTransfer(
        transfer=transfer_facts(body),
        reversals=embedded_reversals(body),
        has_all_reversals=not (body.get("reversals") or {}).get("has_more", True),
        source_transaction=_reference(body.get("source_transaction")),
        transfer_group=_text_or_none(body.get("transfer_group")),
        booked=_booked(booked) if isinstance(booked, Mapping) else None,
    )


def _booked(body: Mapping[str, Any]) -> BookedFacts:
    return BookedFacts(
        stripe_balance_transaction_id=_text(body["id"]),
        type=_text(body["type"]),
        amount=_signed(body["amount"]),
        currency=_text(body["currency"]),
        stripe_source_id=_reference(body.get("source")),
    )


def listed_entry(body: Mapping[str, Any]) -> ListedEntry:
    source = body.get("source")
    if isinstance(source, Mapping) and source.get("object") == "transfer":
        return ListedEntry(booked=_booked(body), about=listed_transfer(source))
    return ListedEntry(booked=_booked(body))


def _charge_facts(body: Mapping[str, Any]) -> ChargeFacts:
    booked = body.get("balance_transaction")
    # Where Stripe gives none yet, the money comes in the charge's own currency as far as is known.
    settled = booked if isinstance(booked, Mapping) else body
    return ChargeFacts(
        stripe_charge_id=_text(body["id"]),
        stripe_payment_intent_id=_reference(body.get("payment_intent")),
        amount=_whole(body["amount"]),
        amount_refunded=_whole(body["amount_refunded"]),
        currency=_text(body["currency"]),
        amount_settled=_whole(settled["amount"]),
        currency_settled=_text(settled["currency"]),
        transfer_group=_text_or_none(body.get("transfer_group")),
        created_at=_time(body["created"]),
    )


def _charge_of(body: Mapping[str, Any]) -> ChargeFacts | None:
    charge = body.get("charge")
    return None if charge is None else _charge_facts(charge)


def listed_refund(body: Mapping[str, Any]) -> ListedRefund:
    return ListedRefund(refund=refund_facts(body), charge=_charge_of(body))


def listed_dispute(body: Mapping[str, Any]) -> ListedDispute:
    facts = dispute_facts(body, seen_at=_time(body["created"]), event_type="")
    return ListedDispute(dispute=facts, charge=_charge_of(body))


def reversal_facts(body: Mapping[str, Any]) -> ReversalFacts:
    return ReversalFacts(
        stripe_reversal_id=_text(body["id"]),
        amount=_whole(body["amount"]),
        currency=_text(body["currency"]),
        operation_id=_metadata(body, OPERATION_ID),
        status=_text_or_none(body.get("status")),
        stripe_balance_transaction_id=_reference(body.get("balance_transaction")),
    )


def _metadata(body: Mapping[str, Any], name: str) -> str:
    metadata = body.get("metadata") or {}
    return _text_or_none(metadata.get(name))


def _reference(value: Any) -> str:
    """The id of an object that Stripe gives as its id, as the object itself where expanded, or as null."""
    if value is None:
        return ""
    return _text(value["id"] if isinstance(value, Mapping) else value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"expected a non-empty string, got {type(value).__name__}")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {type(value).__name__}")
    return value


def _text_or_none(value: Any) -> str:
    """Empty for null, and for what Stripe left out."""
    return "" if value is None or value == "" else _text(value)


def _signed(value: Any) -> int:
    """A whole number that may be below zero."""
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return -_whole(-value)
    return _whole(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {type(value).__name__}")
    if not 0 <= value <= LARGEST_AMOUNT:
        raise ValueError("a number is negative, or larger than any amount")
    return value


def _time(value: Any) -> datetime:
    try:
        return datetime.fromtimestamp(_whole(value), tz=UTC)
    except (OverflowError, OSError):
        # Which of the two depends on the platform.
        raise ValueError("a time is beyond the calendar") from None
