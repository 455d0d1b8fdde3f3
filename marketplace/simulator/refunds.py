"""Refunds to the buyer, and what becomes of them later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors, events, ledger, metadata, shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

SLOW_METHODS = {"pm_card_pendingRefund": "succeeded", "pm_card_refundFail": "failed"}


def create(world: World, owner: str, params: Obj) -> Obj:
    charge = _charge(world, owner, params)
    amount = _amount(world, owner, charge, params)
    if params.get("reverse_transfer") or params.get("refund_application_fee"):
        raise errors.refused(
            f"Cannot reverse the transfer of charge {charge['id']}: it has no transfer associated with "
            "it. Only "
            "destination charges have one.",
            param="reverse_transfer" if params.get("reverse_transfer") else "refund_application_fee",
        )
    refund = shapes.make(
        "refund",
        id=world.new_id("re"),
        amount=amount,
        balance_transaction=None,
        charge=charge["id"],
        created=int(world.now()),
        currency=charge["currency"],
        metadata=metadata.merged({}, params.get("metadata")),
        payment_intent=charge["payment_intent"],
        reason=params.get("reason"),
        status="pending",
    )
    world.store.put(owner, "refund", refund)
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    world.store.changed(owner, "charge", charge)
    _start(world, owner, refund, SLOW_METHODS.get(charge["payment_method"]))
    events.emit(world, owner, "refund.created", refund)
    events.emit(world, owner, "charge.refunded", charge)
    return refund


def _charge(world: World, owner: str, params: Obj) -> Obj:
    if params.get("charge") and params.get("payment_intent"):
        raise errors.invalid(
            "You may only specify one of these parameters: charge, payment_intent.",
            code="parameters_exclusive",
        )
    if params.get("charge"):
        charge = world.store.get(owner, "charge", params["charge"])
        if charge is None:
            raise errors.missing_reference("charge", params["charge"], param="charge")
    elif params.get("payment_intent"):
        intent = world.store.get(owner, "payment_intent", params["payment_intent"])
        if intent is None:
            raise errors.missing_reference("payment_intent", params["payment_intent"], param="payment_intent")
        charge = world.store.get(owner, "charge", intent["latest_charge"] or "")
        if charge is None or charge["status"] != "succeeded":
            raise errors.refused(
                f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund.",
                code="payment_intent_unexpected_state",
                param="payment_intent",
            )
    else:
        raise errors.invalid(
            "One of the following params should be provided for this request: payment_intent or charge.",
            code="parameter_missing",
        )
    if charge["status"] != "succeeded":
        raise errors.refused(f"Charge {charge['id']} has not succeeded and cannot be refunded.", param="charge")
    return charge


def _amount(world: World, owner: str, charge: Obj, params: Obj) -> int:
    left: int = charge["amount"] - charge["amount_refunded"]
    if left == 0:
        raise errors.refused(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    disputes = world.store.table(owner, "dispute").select(charge=charge["id"])
    if not all(each["is_charge_refundable"] for each in disputes):
        raise errors.refused(
            f"Charge {charge['id']} has been charged back; cannot issue a refund.", code="charge_disputed"
        )
    amount: int = params.get("amount", left)
    if amount > left:
        shown = [ledger.shown(each, charge["currency"]) for each in (amount, left)]
        raise errors.refused(
            f"Refund amount ({shown[0]}) is greater than unrefunded amount on charge ({shown[1]})",
            param="amount",
        )
    return amount


def _start(world: World, owner: str, refund: Obj, method: str | None) -> None:
    """Too little money on the platform makes a card refund wait; otherwise the settings decide."""
    outcome = method or world.settings.refund_status
    currency = refund["currency"]
    if ledger.available(world, owner, currency) < refund["amount"]:
        charge = world.store.get(owner, "charge", refund["charge"])
        entry = charge and world.store.get(owner, "balance_transaction", charge["balance_transaction"])
        still_pending = entry is not None and entry["status"] == "pending"
        refund["pending_reason"] = "charge_pending" if still_pending else "insufficient_funds"
        world.waiting.setdefault((owner, currency), []).append(refund["id"])
        return
    _pay(world, owner, refund)
    if outcome == "succeeded" and method is None:
        refund["status"] = "succeeded"
        return
    refund["pending_reason"] = "processing"
    delay = world.settings.refund_settles_after
    if delay is None and method is not None:
        delay = 60
    if delay is not None:
        kind = "fail_refund" if outcome == "failed" else "succeed_refund"
        world.later(world.now() + delay, kind, {"owner": owner, "refund": refund["id"]})


def _pay(world: World, owner: str, refund: Obj) -> None:
    kind = "payment_refund" if refund["id"].startswith("pyr_") else "refund"
    entry = ledger.post(
        world, owner, amount=-refund["amount"], currency=refund["currency"], kind=kind, source=refund["id"]
    )
    refund["balance_transaction"] = entry["id"]


def pay_waiting(world: World, owner: str, currency: str) -> None:
    """Money came in: refunds that waited for it go out, oldest first."""
    waiting = world.waiting.get((owner, currency))
    while waiting:
        refund = world.store.get(owner, "refund", waiting[0])
        if refund is not None and refund["status"] == "pending" and refund["balance_transaction"] is None:
            if ledger.available(world, owner, currency) < refund["amount"]:
                return
            waiting.pop(0)
            succeed(world, owner, refund["id"])
        else:
            waiting.pop(0)


def _announce(world: World, owner: str, refund: Obj, previous: Obj) -> None:
    world.store.changed(owner, "refund", refund)
    events.emit(world, owner, "refund.updated", refund, previous=previous)
    events.emit(world, owner, "charge.refund.updated", refund, previous=previous)


def succeed(world: World, owner: str, refund: str) -> Obj:
    """A pending refund has reached the buyer. Anything but a pending one stays as it is."""
    found = _find(world, owner, refund)
    if found["status"] not in {"pending", "requires_action"}:
        return found
    if found["balance_transaction"] is None:
        _pay(world, owner, found)
    previous: Obj = {"status": found["status"]}
    if "pending_reason" in found:
        previous["pending_reason"] = found.pop("pending_reason")
    found["status"] = "succeeded"
    _announce(world, owner, found, previous)
    return found


def fail(world: World, owner: str, refund: str, reason: str = "unknown", status: str = "failed") -> Obj:
    """The money comes back to the platform, up to 30 days later, also after it had succeeded."""
    found = _find(world, owner, refund)
    if found["status"] in {"failed", "canceled"}:
        return found
    previous: Obj = {"status": found["status"]}
    if "pending_reason" in found:
        previous["pending_reason"] = found.pop("pending_reason")
    if found["balance_transaction"] is not None:
        entry = ledger.post(
            world,
            owner,
            amount=found["amount"],
            currency=found["currency"],
            kind="refund_failure",
            source=found["id"],
        )
        found["failure_balance_transaction"] = entry["id"]
        previous["failure_balance_transaction"] = None
    found["status"] = status
    found["failure_reason"] = reason
    previous["failure_reason"] = None
    charge = world.store.get(owner, "charge", found["charge"])
    assert charge is not None
    charge["amount_refunded"] -= found["amount"]
    charge["refunded"] = False
    world.store.changed(owner, "charge", charge)
    _announce(world, owner, found, previous)
    events.emit(world, owner, "refund.failed", found)
    return found


def cancel(world: World, owner: str, refund: Obj) -> Obj:
    if refund["status"] != "requires_action":
        raise errors.refused(
            f"Refund {refund['id']} cannot be canceled: only a refund with status requires_action can, "
            "and this "
            f"one has status {refund['status']}."
        )
    return fail(world, owner, refund["id"], reason="merchant_request", status="canceled")


def require_action(world: World, owner: str, refund: str) -> Obj:
    """The buyer is asked for bank details. Also a refund that had succeeded may come to this."""
    found = _find(world, owner, refund)
    if found["status"] in {"failed", "canceled", "requires_action"}:
        return found
    previous = {"status": found["status"]}
    found["status"] = "requires_action"
    _announce(world, owner, found, previous)
    return found


def update(world: World, owner: str, refund: Obj, params: Obj) -> Obj:
    if "metadata" in params:
        new = metadata.merged(refund["metadata"], params["metadata"])
        if new != refund["metadata"]:
            previous = {"metadata": metadata.previous(refund["metadata"], new)}
            refund["metadata"] = new
            _announce(world, owner, refund, previous)
    return refund


def _find(world: World, owner: str, id_: str) -> Obj:
    found = world.store.get(owner, "refund", id_)
    if found is None:
        raise errors.missing_object("refund", id_)
    return found
