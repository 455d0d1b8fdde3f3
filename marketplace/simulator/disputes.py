"""Chargebacks: opened and closed by the simulator's control, never by the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors, events, ledger, shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

FEE = 1500
OPEN = {"needs_response", "under_review", "warning_needs_response", "warning_under_review"}


def open_dispute(
    world: World,
    owner: str,
    charge_id: str,
    *,
    amount: int | None = None,
    reason: str = "fraudulent",
    withdraw: bool = True,
    fee: int = FEE,
) -> Obj:
    """The buyer's bank complains. Without `withdraw` it is an inquiry: no money has moved yet."""
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
        currency=charge["currency"],
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
    if withdraw:
        charge["disputed"] = True
        world.store.changed(owner, "charge", charge)
    events.emit(world, owner, "charge.dispute.created", dispute)
    if withdraw:
        _post(world, owner, dispute, -dispute["amount"], category="dispute", fee=fee)
        events.emit(world, owner, "charge.dispute.funds_withdrawn", dispute)
    return dispute


def _post(world: World, owner: str, dispute: Obj, amount: int, *, category: str, fee: int = 0) -> None:
    entry = ledger.post(
        world,
        owner,
        amount=amount,
        currency=dispute["currency"],
        kind="adjustment",
        source=dispute["id"],
        category=category,
        fee=fee,
    )
    dispute["balance_transactions"] = [*dispute["balance_transactions"], entry]
    world.store.changed(owner, "dispute", dispute)


def close(world: World, owner: str, dispute_id: str, *, status: str) -> Obj:
    """`won`, `lost` or `warning_closed`. A win brings the money back, the fee stays paid."""
    dispute = world.store.get(owner, "dispute", dispute_id)
    if dispute is None:
        raise errors.missing_object("dispute", dispute_id)
    if dispute["status"] not in OPEN:
        raise errors.refused(f"This dispute is already closed: its status is {dispute['status']}.")
    dispute["status"] = status
    dispute["is_charge_refundable"] = status != "lost"
    if status == "won" and dispute["balance_transactions"]:
        _post(world, owner, dispute, dispute["amount"], category="dispute_reversal")
        events.emit(world, owner, "charge.dispute.funds_reinstated", dispute)
    world.store.changed(owner, "dispute", dispute)
    events.emit(world, owner, "charge.dispute.closed", dispute)
    return dispute
