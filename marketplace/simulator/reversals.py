"""Transfer reversals: the seller's money comes back to the platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors, events, ledger, metadata, shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

EMBEDDED_MAX = 10
GIVE_UP_SECONDS = 45 * 24 * 3600


def create(world: World, owner: str, transfer: Obj, params: Obj) -> Obj:
    """An omitted amount means the whole transfer, also after a partial reversal (unconfirmed): then it is
    too much.
    """
    left: int = transfer["amount"] - transfer["amount_reversed"] - _waiting(world, owner, transfer)
    if left == 0:
        raise errors.refused(f"The transfer {transfer['id']} is already fully reversed.")
    amount: int = params["amount"] if "amount" in params else transfer["amount"]
    currency, seller = transfer["currency"], transfer["destination"]
    if amount > left:
        shown = [ledger.shown(each, currency) for each in (amount, left)]
        raise errors.refused(
            f"Transfer reversal amount ({shown[0]}) is greater than unreversed amount on transfer ({shown[1]})",
            param="amount",
        )
    fields = {
        "id": world.new_id("trr"),
        "amount": amount,
        "created": int(world.now()),
        "currency": currency,
        "metadata": metadata.merged({}, params.get("metadata")),
        "transfer": transfer["id"],
    }
    reversal = shapes.make("transfer_reversal", **fields)
    covered = _pending_until(world, transfer) is not None or _covered(world, seller, currency, amount)
    if not covered and not world.settings.pending_reversals:
        raise errors.refused(
            "The connected account has insufficient available funds to reverse this transfer.",
            code="balance_insufficient",
        )
    if world.settings.pending_reversals:
        reversal["status"] = "succeeded" if covered else "pending"
    world.store.put(owner, "transfer_reversal", reversal)
    if world.cause[1] is not None:
        world.made_by[reversal["id"]] = world.cause[1]
    if covered:
        _move(world, owner, transfer, reversal)
        events.emit(world, owner, "transfer.reversed", transfer)
    else:
        _embed(transfer, reversal)
        args = {"owner": owner, "reversal": reversal["id"]}
        world.later(world.now() + GIVE_UP_SECONDS, "give_up_reversal", args)
    world.store.changed(owner, "transfer", transfer)
    return reversal


def _covered(world: World, seller: str, currency: str, amount: int) -> bool:
    return ledger.available(world, seller, currency) >= amount or world.may_go_negative(seller)


def _waiting(world: World, owner: str, transfer: Obj) -> int:
    """What pending reversals will take: it cannot be reversed twice."""
    if not world.settings.pending_reversals:
        return 0
    table = world.store.table(owner, "transfer_reversal")
    return sum(each["amount"] for each in table.select(transfer=transfer["id"]) if each.get("status") == "pending")


def _pending_until(world: World, transfer: Obj) -> float | None:
    """When the transferred money arrives at the seller, if it has not: then a reversal takes it from
    there.
    """
    if transfer["source_transaction"] is None:
        return None
    payment = world.store.get(transfer["destination"], "charge", transfer["destination_payment"])
    assert payment is not None
    entry = world.store.get(transfer["destination"], "balance_transaction", payment["balance_transaction"])
    return entry["available_on"] if entry is not None and entry["status"] == "pending" else None


def _embed(transfer: Obj, reversal: Obj) -> None:
    """The transfer shows its ten latest reversals."""
    listed = transfer["reversals"]
    listed["total_count"] += 1
    listed["data"].insert(0, reversal)
    if len(listed["data"]) > EMBEDDED_MAX:
        listed["data"].pop()
        listed["has_more"] = True


def _move(world: World, owner: str, transfer: Obj, reversal: Obj) -> None:
    amount, currency, seller = reversal["amount"], transfer["currency"], transfer["destination"]
    available_on = _pending_until(world, transfer)
    refund_id, payment_id = world.new_id("pyr"), transfer["destination_payment"]
    into = ledger.post(
        world,
        owner,
        amount=amount,
        currency=currency,
        kind="transfer_refund",
        source=transfer["id"],
        available_on=available_on,
    )
    out = ledger.post(
        world,
        seller,
        amount=-amount,
        currency=currency,
        kind="payment_refund",
        source=refund_id,
        available_on=available_on,
    )
    refund = shapes.make(
        "refund",
        id=refund_id,
        amount=amount,
        balance_transaction=out["id"],
        charge=payment_id,
        created=into["created"],
        currency=currency,
        source_transfer_reversal=reversal["id"],
    )
    del refund["destination_details"]
    world.store.put(seller, "refund", refund)
    payment = world.store.get(seller, "charge", payment_id)
    assert payment is not None
    payment["amount_refunded"] += amount
    payment["refunded"] = payment["amount_refunded"] == payment["amount"]
    world.store.changed(seller, "charge", payment)
    reversal["balance_transaction"] = into["id"]
    reversal["destination_payment_refund"] = refund_id
    world.store.changed(owner, "transfer_reversal", reversal)
    transfer["amount_reversed"] += amount
    transfer["reversed"] = transfer["amount_reversed"] == transfer["amount"]
    _embed(transfer, reversal)
    if available_on is None:
        world.funds_arrived(owner, currency)


def take_waiting(world: World, seller: str, currency: str) -> None:
    """Money reached a seller: reversals that wait for it are done, oldest first."""
    if not world.settings.pending_reversals:
        return
    for transfer in list(world.store.table(world.platform, "transfer").select(destination=seller)):
        if transfer["currency"] != currency:
            continue
        table = world.store.table(world.platform, "transfer_reversal")
        for reversal in list(table.select(transfer=transfer["id"])):
            if reversal.get("status") != "pending":
                continue
            if not _covered(world, seller, currency, reversal["amount"]):
                return
            _finish(world, world.platform, transfer, reversal)


def _finish(world: World, owner: str, transfer: Obj, reversal: Obj) -> None:
    reversal["status"] = "succeeded"
    listed = transfer["reversals"]
    if reversal in listed["data"]:
        listed["data"].remove(reversal)
        listed["total_count"] -= 1
    _move(world, owner, transfer, reversal)
    world.store.changed(owner, "transfer", transfer)
    events.emit(world, owner, "transfer.reversed", transfer)


def stop_waiting(world: World, owner: str, reversal: str, status: str = "failed") -> Obj:
    """A pending reversal fails after 45 days, or is canceled. No event is known to tell of it
    (unconfirmed).
    """
    found = world.store.get(owner, "transfer_reversal", reversal)
    if found is None:
        raise errors.missing_object("transfer reversal", reversal)
    if found.get("status") == "pending":
        found["status"] = status
        world.store.changed(owner, "transfer_reversal", found)
        transfer = world.store.get(owner, "transfer", found["transfer"])
        if transfer is not None:
            world.store.changed(owner, "transfer", transfer)
    return found


def update(world: World, owner: str, reversal: Obj, params: Obj) -> Obj:
    if "metadata" in params:
        reversal["metadata"] = metadata.merged(reversal["metadata"], params["metadata"])
        world.store.changed(owner, "transfer_reversal", reversal)
        transfer = world.store.get(owner, "transfer", reversal["transfer"])
        if transfer is not None:
            world.store.changed(owner, "transfer", transfer)
    return reversal
