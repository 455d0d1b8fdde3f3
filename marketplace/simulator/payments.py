"""Payment intents and the charges they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import disputes, errors, events, ledger, metadata, shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

SMALLEST = {"eur": 50, "usd": 50, "gbp": 30, "chf": 50, "jpy": 50}
DECLINED = {
    "pm_card_chargeDeclined": ("card_declined", "generic_decline", "Your card was declined."),
    "pm_card_visa_chargeDeclined": ("card_declined", "generic_decline", "Your card was declined."),
    "pm_card_chargeDeclinedInsufficientFunds": (
        "card_declined",
        "insufficient_funds",
        "Your card has insufficient funds.",
    ),
    "pm_card_chargeDeclinedExpiredCard": ("expired_card", None, "Your card has expired."),
}
CANCELABLE = {
    "requires_payment_method",
    "requires_capture",
    "requires_confirmation",
    "requires_action",
    "processing",
}


def create(world: World, owner: str, params: Obj) -> Obj:
    amount, currency = params["amount"], params["currency"].lower()
    _check_amount(amount, currency)
    for name in ("transfer_data", "application_fee_amount", "on_behalf_of"):
        if params.get(name):
            raise errors.not_simulated("destination charges", param=name)
    if params.get("capture_method", "automatic") == "manual":
        raise errors.not_simulated("separate capture", param="capture_method")
    if params.get("payment_method_data") or params.get("confirmation_token"):
        raise errors.not_simulated("payment methods other than test ones such as pm_card_visa")
    if params.get("confirm") and not params.get("payment_method"):
        raise errors.invalid(
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            param="payment_method",
        )
    id_ = world.new_id("pi")
    automatic = params.get("automatic_payment_methods") or {"enabled": "payment_method_types" not in params}
    intent = shapes.make(
        "payment_intent",
        id=id_,
        amount=amount,
        automatic_payment_methods=automatic if automatic.get("enabled") else None,
        capture_method=params.get("capture_method", "automatic_async"),
        client_secret=f"{id_}_secret_{world.new_id('x')[3:]}",
        created=int(world.now()),
        currency=currency,
        customer=params.get("customer"),
        description=params.get("description"),
        livemode=world.livemode,
        metadata=metadata.merged({}, params.get("metadata")),
        payment_method=params.get("payment_method"),
        payment_method_types=params.get("payment_method_types") or ["card"],
        receipt_email=params.get("receipt_email"),
        status="requires_confirmation" if params.get("payment_method") else "requires_payment_method",
        transfer_group=params.get("transfer_group"),
    )
    world.store.put(owner, "payment_intent", intent)
    events.emit(world, owner, "payment_intent.created", intent)
    if params.get("confirm"):
        return confirm(world, owner, intent, {})
    return intent


def _check_amount(amount: int, currency: str) -> None:
    if amount < SMALLEST.get(currency, 1):
        raise errors.StripeError(
            400,
            f"Amount must be at least {ledger.shown(SMALLEST.get(currency, 1), currency)}",
            code="amount_too_small",
            param="amount",
        )
    if amount > 99999999:
        raise errors.StripeError(400, "Amount must be no more than 999,999.99", code="amount_too_large", param="amount")


def confirm(world: World, owner: str, intent: Obj, params: Obj) -> Obj:
    if intent["status"] not in {"requires_payment_method", "requires_confirmation", "requires_action"}:
        raise errors.refused(
            f"You cannot confirm this PaymentIntent because it has already {intent['status']} after being "
            "previously "
            "confirmed.",
            code="payment_intent_unexpected_state",
            payment_intent=intent,
        )
    method = params.get("payment_method") or intent["payment_method"]
    if not method:
        raise errors.refused(
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can either "
            "update the "
            "PaymentIntent with a payment method and then confirm it again, or confirm it again directly "
            "with a "
            "payment method.",
            code="payment_intent_unexpected_state",
            payment_intent=intent,
        )
    intent["payment_method"] = method
    if method in DECLINED:
        raise _declined(world, owner, intent, method)
    charge = make_charge(
        world,
        owner,
        amount=intent["amount"],
        currency=intent["currency"],
        payment_intent=intent["id"],
        payment_method=method,
        transfer_group=intent["transfer_group"],
        metadata=intent["metadata"],
        description=intent["description"],
    )
    intent["status"] = "succeeded"
    intent["amount_received"] = intent["amount"]
    intent["latest_charge"] = charge["id"]
    intent["last_payment_error"] = None
    world.store.changed(owner, "payment_intent", intent)
    events.emit(world, owner, "charge.succeeded", charge)
    events.emit(world, owner, "payment_intent.succeeded", intent)
    disputes.follow_charge(world, owner, charge)
    return intent


def _declined(world: World, owner: str, intent: Obj, method: str) -> errors.StripeError:
    code, decline_code, message = DECLINED[method]
    charge = shapes.make(
        "charge",
        id=world.new_id("ch"),
        amount=intent["amount"],
        balance_transaction=None,
        captured=False,
        created=int(world.now()),
        currency=intent["currency"],
        failure_code=code,
        failure_message=message,
        livemode=world.livemode,
        metadata=intent["metadata"],
        paid=False,
        payment_intent=intent["id"],
        payment_method=method,
        status="failed",
        transfer_group=intent["transfer_group"],
    )
    world.store.put(owner, "charge", charge)
    intent["status"] = "requires_payment_method"
    intent["payment_method"] = None
    intent["latest_charge"] = charge["id"]
    more = {"charge": charge["id"]} | ({"decline_code": decline_code} if decline_code else {})
    intent["last_payment_error"] = {"code": code, "message": message, "type": "card_error", **more}
    world.store.changed(owner, "payment_intent", intent)
    events.emit(world, owner, "charge.failed", charge)
    events.emit(world, owner, "payment_intent.payment_failed", intent)
    return errors.StripeError(
        402, message, kind="card_error", code=code, ran=True, payment_intent=intent.copy(), **more
    )


def make_charge(
    world: World,
    owner: str,
    *,
    amount: int,
    currency: str,
    payment_intent: str | None = None,
    payment_method: str = "pm_card_visa",
    transfer_group: str | None = None,
    metadata: dict[str, str] | None = None,
    description: str | None = None,
    settles_after: float | None = None,
) -> Obj:
    delay = world.settings.charge_settles_after if settles_after is None else settles_after
    if payment_method == "pm_card_bypassPending":
        delay = 0
    id_ = world.new_id("ch")
    entry = ledger.post(
        world,
        owner,
        amount=amount,
        currency=currency,
        kind="charge",
        source=id_,
        available_on=world.now() + delay,
        description=description,
    )
    charge = shapes.make(
        "charge",
        id=id_,
        amount=amount,
        amount_captured=amount,
        balance_transaction=entry["id"],
        created=int(world.now()),
        currency=currency,
        description=description,
        livemode=world.livemode,
        metadata=metadata or {},
        payment_intent=payment_intent,
        payment_method=payment_method,
        status="succeeded",
        transfer_group=transfer_group,
    )
    world.store.put(owner, "charge", charge)
    if delay <= 0:
        world.funds_arrived(owner, currency)
    return charge


def update(world: World, owner: str, intent: Obj, params: Obj) -> Obj:
    if intent["status"] in {"succeeded", "canceled"} and {"amount", "currency", "payment_method"} & set(params):
        raise errors.refused(
            f"This PaymentIntent's amount could not be updated because it has a status of {intent['status']}.",
            code="payment_intent_unexpected_state",
            payment_intent=intent,
        )
    if "amount" in params:
        _check_amount(params["amount"], intent["currency"])
    for name in ("amount", "currency", "description", "receipt_email", "transfer_group", "payment_method"):
        if name in params:
            intent[name] = params[name] or None
    if "metadata" in params:
        intent["metadata"] = metadata.merged(intent["metadata"], params["metadata"])
    if intent["status"] == "requires_payment_method" and intent["payment_method"]:
        intent["status"] = "requires_confirmation"
    world.store.changed(owner, "payment_intent", intent)
    return intent


def cancel(world: World, owner: str, intent: Obj, params: Obj) -> Obj:
    if intent["status"] not in CANCELABLE:
        raise errors.refused(
            f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}. Only a "
            "PaymentIntent "
            "with one of the following statuses may be canceled: requires_payment_method, requires_capture, "
            "requires_confirmation, requires_action, processing.",
            code="payment_intent_unexpected_state",
            payment_intent=intent,
        )
    intent["status"] = "canceled"
    intent["canceled_at"] = int(world.now())
    intent["cancellation_reason"] = params.get("cancellation_reason")
    world.store.changed(owner, "payment_intent", intent)
    events.emit(world, owner, "payment_intent.canceled", intent)
    return intent


def update_charge(world: World, owner: str, charge: Obj, params: Obj) -> Obj:
    previous: Obj = {}
    if params.get("transfer_group") and charge["transfer_group"] not in {None, params["transfer_group"]}:
        raise errors.refused("transfer_group cannot be updated: it has been set already.", param="transfer_group")
    for name in ("description", "transfer_group", "receipt_email", "customer"):
        if name in params and charge[name] != (params[name] or None):
            previous[name] = charge[name]
            charge[name] = params[name] or None
    if "metadata" in params:
        new = metadata.merged(charge["metadata"], params["metadata"])
        if new != charge["metadata"]:
            previous["metadata"] = metadata.previous(charge["metadata"], new)
            charge["metadata"] = new
    if previous:
        world.store.changed(owner, "charge", charge)
        events.emit(world, owner, "charge.updated", charge, previous=previous)
    return charge
