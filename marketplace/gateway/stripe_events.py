"""Raw bytes and a signature in, a verified event out."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import stripe
from django.conf import settings

from marketplace.errors import MalformedEvent, SignatureRefused


@dataclass(frozen=True, kw_only=True)
class IncomingEvent:
    """An event that Stripe signed. ``stripe_account_id`` is empty for events of our own account."""

    stripe_event_id: str
    type: str
    stripe_account_id: str
    livemode: bool
    api_version: str
    created_at: datetime
    payload: Mapping[str, Any]
    # What the payload was read from. Empty where that is no text of an event.
    text: str = field(default="", compare=False)


def verify(body: bytes, signature: str | None) -> IncomingEvent:
    """Check the signature over the raw bytes with every configured secret, then read the event.

    The JSON is read by hand: the SDK would build a tree of objects that nobody needs, at twenty times the cost.

    Raises:
        SignatureRefused: no header, none of the secrets fits, or the stamp is older than the tolerance.
        MalformedEvent: signed, but not an event as Stripe documents it.

    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise SignatureRefused("the body is not UTF-8, so no signature of Stripe's can fit") from None
    _check_signature(text, signature)
    try:
        event = parse(text)
    except (ValueError, RecursionError):
        raise MalformedEvent("the signed body is not JSON that can be read") from None
    return read(event, text=text)


def parse(text: str) -> Any:
    """Raises ``ValueError`` for what is no JSON, or holds a number that PostgreSQL's would not take; and
    ``RecursionError``.
    """
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    """Neither NaN nor Infinity is JSON, and a number beyond the range of floats would become one of them."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _check_signature(text: str, signature: str | None) -> None:
    if not signature:
        raise SignatureRefused("the Stripe-Signature header is missing")
    if not signature.isascii():
        # The SDK's comparison in constant time fails on other characters.
        raise SignatureRefused("the Stripe-Signature header has characters that no signature has")
    tolerance = int(settings.STRIPE_WEBHOOK_TOLERANCE.total_seconds())
    refusals: dict[str, None] = {}
    for secret in settings.STRIPE_WEBHOOK_SECRETS:
        try:
            stripe.WebhookSignature.verify_header(text, signature, secret, tolerance)
        except stripe.SignatureVerificationError as error:
            refusals[str(error.user_message)] = None
        else:
            return
    # One of several secrets may fit a stamp that is too old: that reason must not be hidden by the others'.
    raise SignatureRefused("; ".join(refusals) or "no webhook secret is configured")


def read(event: Any, *, text: str = "") -> IncomingEvent:
    """An event whose origin is known: signed, or answered by Stripe; ``text`` is what it was read from.

    Raises ``MalformedEvent``.
    """
    if not isinstance(event, dict) or event.get("object") != "event":
        raise MalformedEvent('expected a snapshot event: an object with "object": "event"')
    data = event.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("object"), dict):
        raise MalformedEvent("data.object is missing: expected an object")
    for name, kind in {"livemode": bool, "created": int}.items():
        if type(event.get(name)) is not kind:
            raise MalformedEvent(f"{name} is {type(event.get(name)).__name__}: expected {kind.__name__}")
    identity = _text(event, "id", longest=255)
    if not identity.startswith("evt_"):
        raise MalformedEvent("id is not an evt_…")
    return IncomingEvent(
        stripe_event_id=identity,
        type=_text(event, "type", longest=255),
        # Of our own account's events this is left out, and of old events the version may be null.
        stripe_account_id="" if event.get("account") is None else _text(event, "account", longest=255),
        livemode=event["livemode"],
        api_version="" if event.get("api_version") is None else _text(event, "api_version", longest=100),
        created_at=_time(event["created"]),
        payload=event,
        text=text,
    )


def _text(event: Mapping[str, Any], name: str, *, longest: int) -> str:
    """What the inbox stores in columns of its own: no NUL, no half of a surrogate pair, not longer than the column."""
    value = event.get(name)
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > longest:
        raise MalformedEvent(f"{name} is not a printable text of 1 to {longest} characters")
    return value


def _time(created: int) -> datetime:
    try:
        if created >= 0:
            return datetime.fromtimestamp(created, tz=UTC)
    except (OverflowError, OSError, ValueError):
        pass
    raise MalformedEvent("created is not a time in seconds since 1970")
