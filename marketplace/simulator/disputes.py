"""Chargebacks: opened and closed by the simulator's control, never by the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors, events, ledger, refunds, shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

FEE = 1500
# Stripe's test cards whose charge succeeds, only to be disputed: as what, and whether money is withdrawn
# (docs.stripe.com/testing#disputes).
OPENED_BY = {
    "pm_card_createDispute": ("fraudulent", True),
    "pm_card_createDisputeProductNotReceived": ("product_not_received", True),
    "pm_card_createDisputeInquiry": ("fraudulent", False),
}
# Seconds after the charge, so that its own events are first.
OPENS_AFTER = 1
# What a response makes of a dispute that waits for one.
RESPONDED = {
    "warning_needs_response": "warning_under_review",
    "needs_response": "under_review",
    "appeal_needs_response": "appeal_under_review",
}
INQUIRIES = {"warning_needs_response", "warning_under_review"}
OPEN = {*RESPONDED, *RESPONDED.values()}
# A bank may change its mind once more.
CLOSES = {"won": OPEN | {"lost"}, "lost": OPEN, "warning_closed": INQUIRIES, "prevented": OPEN}


def open_dispute(
    world: World,
    owner: str,
    charge_id: str,
    *,
    amount: int | None = None,
    currency: str | None = None,
    reason: str = "fraudulent",
    withdraw: bool = True,
    fee: int = FEE,
) -> Obj:
    """The buyer's bank complains. Without `withdraw` it is an inquiry: no money has moved yet. `currency`: the
    dispute's, where it is not the charge's; the balance is debited in the charge's.
    """
    charge = world.store.get(owner, "charge", charge_id)
    if charge is None:
        raise errors.missing_object("charge", charge_id)
    now = int(world.now())
    dispute = shapes.make(
        "dispute",
        id=world.new_id("dp"),
        amount=charge["amount"] if amount is None else amount,
        balance_transactions=[],
        charge=charge_id,
        created=now,
        currency=currency or charge["currency"],
        evidence_details={
            "due_by": now + 7 * 24 * 3600,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        is_charge_refundable=not withdraw,
        livemode=world.livemode,
        payment_intent=charge["payment_intent"],
        reason=reason,
        status="needs_response" if withdraw else "warning_needs_response",
    )
    world.store.put(owner, "dispute", dispute)
    events.emit(world, owner, "charge.dispute.created", dispute)
    if withdraw:
        _withdraw(world, owner, dispute, charge, fee=fee)
    return dispute


def follow_charge(world: World, owner: str, charge: Obj) -> None:
    """A card that is made for it opens a dispute a moment later."""
    if charge["payment_method"] in OPENED_BY:
        world.later(world.now() + OPENS_AFTER, "dispute_charge", {"owner": owner, "charge": charge["id"]})


def open_by_card(world: World, owner: str, charge_id: str) -> None:
    charge = world.store.get(owner, "charge", charge_id)
    assert charge is not None
    reason, withdraw = OPENED_BY[charge["payment_method"]]
    open_dispute(world, owner, charge_id, reason=reason, withdraw=withdraw)


def _withdraw(world: World, owner: str, dispute: Obj, charge: Obj, *, fee: int) -> None:
    """The bank takes the money. Refunds of the charge that are under way fail."""
    charge["disputed"] = True
    world.store.changed(owner, "charge", charge)
    taken = dispute["amount"] if dispute["currency"] == charge["currency"] else charge["amount"]
    _post(world, owner, dispute, -taken, currency=charge["currency"], category="dispute", fee=fee)
    events.emit(world, owner, "charge.dispute.funds_withdrawn", dispute)
    for refund in list(world.store.table(owner, "refund").select(charge=charge["id"])):
        if refund["status"] in {"pending", "requires_action"}:
            refunds.fail(world, owner, refund["id"], "charge_for_pending_refund_disputed")


def _post(world: World, owner: str, dispute: Obj, amount: int, *, currency: str, category: str, fee: int = 0) -> None:
    entry = ledger.post(
        world,
        owner,
        amount=amount,
        currency=currency,
        kind="adjustment",
        source=dispute["id"],
        category=category,
        fee=fee,
    )
    dispute["balance_transactions"] = [*dispute["balance_transactions"], entry]
    world.store.changed(owner, "dispute", dispute)


def respond(world: World, owner: str, dispute_id: str) -> Obj:
    """Evidence is submitted: the bank reviews it."""
    dispute = _find(world, owner, dispute_id)
    if dispute["status"] not in RESPONDED:
        raise errors.refused(f"This dispute takes no evidence: its status is {dispute['status']}.")
    previous = {"status": dispute["status"], "evidence_details": dispute["evidence_details"]}
    details = dispute["evidence_details"]
    submitted = {"has_evidence": True, "submission_count": details["submission_count"] + 1}
    dispute["evidence_details"] = {**details, **submitted}
    dispute["status"] = RESPONDED[dispute["status"]]
    world.store.changed(owner, "dispute", dispute)
    events.emit(world, owner, "charge.dispute.updated", dispute, previous=previous)
    return dispute


def escalate(world: World, owner: str, dispute_id: str, *, fee: int = FEE) -> Obj:
    """An inquiry becomes a chargeback, unless the buyer has got all of it back by refunds."""
    dispute = _find(world, owner, dispute_id)
    charge = world.store.get(owner, "charge", dispute["charge"])
    assert charge is not None
    if dispute["status"] not in INQUIRIES or charge["refunded"]:
        raise errors.refused(f"This dispute is no open inquiry: its status is {dispute['status']}.")
    previous = {"status": dispute["status"], "is_charge_refundable": True}
    dispute["status"], dispute["is_charge_refundable"] = "needs_response", False
    events.emit(world, owner, "charge.dispute.updated", dispute, previous=previous)
    _withdraw(world, owner, dispute, charge, fee=fee)
    return dispute


def close(world: World, owner: str, dispute_id: str, *, status: str, reinstated: int | None = None) -> Obj:
    """A win brings the money back, the fee stays paid. `reinstated`: so much comes back, also of one that is lost."""
    dispute = _find(world, owner, dispute_id)
    if dispute["status"] not in CLOSES[status]:
        raise errors.refused(f"This dispute cannot be {status}: its status is {dispute['status']}.")
    dispute["status"] = status
    dispute["is_charge_refundable"] = status != "lost"
    entries = dispute["balance_transactions"]
    missing = -sum(each["amount"] for each in entries)
    if reinstated is None:
        reinstated = missing if status in {"won", "prevented"} else 0
    if 0 < reinstated <= missing:
        _post(world, owner, dispute, reinstated, currency=entries[0]["currency"], category="dispute_reversal")
        events.emit(world, owner, "charge.dispute.funds_reinstated", dispute)
    world.store.changed(owner, "dispute", dispute)
    events.emit(world, owner, "charge.dispute.closed", dispute)
    return dispute


def _find(world: World, owner: str, id_: str) -> Obj:
    found = world.store.get(owner, "dispute", id_)
    if found is None:
        raise errors.missing_object("dispute", id_)
    return found
