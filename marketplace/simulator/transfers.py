"""Transfers to connected accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors, events, ledger, metadata, shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

NO_FUNDS = (
    "You have insufficient available funds in your Stripe account. Try adding funds directly to your "
    "available "
    "balance by creating Charges using the 4000000000000077 test card. See: "
    "https://stripe.com/docs/testing#available-balance"
)


def create(world: World, owner: str, params: Obj) -> Obj:
    if owner != world.platform:
        raise errors.not_simulated("account debits (transfers made as a connected account)")
    currency = params["currency"].lower()
    if "amount" not in params:
        raise errors.invalid("Missing required param: amount.", code="parameter_missing", param="amount")
    amount: int = params["amount"]
    destination = params["destination"]
    account = world.store.get(owner, "account", destination)
    if account is None:
        raise errors.missing_reference("destination", destination, param="destination")
    if account["capabilities"].get("transfers") != "active":
        raise errors.refused(
            "Your destination account needs to have at least one of the following capabilities enabled: "
            "transfers, "
            "crypto_transfers, legacy_payments",
            code="insufficient_capabilities_for_transfer",
        )
    charge, available_on = _source(world, owner, amount, currency, params.get("source_transaction"))
    if available_on is None and ledger.available(world, owner, currency) < amount:
        raise errors.refused(NO_FUNDS, code="balance_insufficient")
    return _make(world, params, amount=amount, currency=currency, charge=charge, available_on=available_on)


def _source(
    world: World, owner: str, amount: int, currency: str, charge_id: str | None
) -> tuple[Obj | None, float | None]:
    """The charge that the transfer is taken from, and when its money arrives if that is not yet.

    Reversed parts of earlier transfers do not count against the charge (unconfirmed, the likelier reading
    of "the sum of transfers must not exceed the charge"); the error's text is from public reports.
    """
    if charge_id is None:
        return None, None
    charge = world.store.get(owner, "charge", charge_id)
    if charge is None:
        raise errors.missing_reference("charge", charge_id, param="source_transaction")
    if charge["status"] != "succeeded":
        raise errors.refused(
            f"The charge {charge_id} cannot be used as a source_transaction: it has not succeeded.",
            param="source_transaction",
        )
    entry = world.store.get(owner, "balance_transaction", charge["balance_transaction"])
    assert entry is not None
    if entry["currency"] != currency:
        raise errors.refused(
            f"The currency of source_transaction's balance transaction ({entry['currency']}) must be the "
            "same as the "
            f"transfer currency ({currency})",
            param="currency",
        )
    used = sum(
        transfer["amount"] - transfer["amount_reversed"]
        for transfer in world.store.table(owner, "transfer").select(source_transaction=charge_id)
    )
    if used + amount > charge["amount"]:
        already = (
            f" (There is already a transfer using this source, amounting to {ledger.shown(used, currency)}.)"
            if used
            else ""
        )
        raise errors.refused(
            "Transfers using this transaction as a source must not exceed the source amount of "
            f"{ledger.shown(charge['amount'], currency)}.{already}"
        )
    return charge, entry["available_on"] if entry["status"] == "pending" else None


def _make(
    world: World,
    params: Obj,
    *,
    amount: int,
    currency: str,
    charge: Obj | None,
    available_on: float | None,
) -> Obj:
    owner = world.platform
    group = params.get("transfer_group")
    if charge is not None:
        if charge["transfer_group"] is None:
            charge["transfer_group"] = group or f"group_{charge['payment_intent'] or charge['id']}"
            world.store.changed(owner, "charge", charge)
        group = group or charge["transfer_group"]
    id_, payment_id, seller = world.new_id("tr"), world.new_id("py"), params["destination"]
    out = ledger.post(
        world,
        owner,
        amount=-amount,
        currency=currency,
        kind="transfer",
        source=id_,
        available_on=available_on,
    )
    into = ledger.post(
        world,
        seller,
        amount=amount,
        currency=currency,
        kind="payment",
        source=payment_id,
        available_on=available_on,
    )
    now = int(world.now())
    transfer = shapes.make(
        "transfer",
        id=id_,
        amount=amount,
        balance_transaction=out["id"],
        created=now,
        currency=currency,
        description=params.get("description"),
        destination=seller,
        destination_payment=payment_id,
        livemode=world.livemode,
        metadata=metadata.merged({}, params.get("metadata")),
        reversals=shapes.page(f"/v1/transfers/{id_}/reversals", [], total_count=0),
        source_transaction=None if charge is None else charge["id"],
        source_type=params.get("source_type", "card"),
        transfer_group=group,
    )
    payment = shapes.make(
        "charge",
        id=payment_id,
        amount=amount,
        amount_captured=amount,
        balance_transaction=into["id"],
        created=now,
        currency=currency,
        livemode=world.livemode,
        payment_method=None,
        payment_method_details={"stripe_account": {}, "type": "stripe_account"},
        source_transfer=id_,
        status="succeeded",
        transfer_group=group,
    )
    world.store.put(owner, "transfer", transfer)
    world.store.put(seller, "charge", payment)
    events.emit(world, owner, "transfer.created", transfer)
    if available_on is None:
        world.funds_arrived(seller, currency, announce=True)
    return transfer


def update(world: World, owner: str, transfer: Obj, params: Obj) -> Obj:
    """Metadata and description: Stripe's description of the endpoint lists both."""
    previous: Obj = {}
    if "description" in params and (params["description"] or None) != transfer["description"]:
        previous["description"] = transfer["description"]
        transfer["description"] = params["description"] or None
    if "metadata" in params:
        new = metadata.merged(transfer["metadata"], params["metadata"])
        if new != transfer["metadata"]:
            previous["metadata"] = metadata.previous(transfer["metadata"], new)
            transfer["metadata"] = new
    if previous:
        world.store.changed(owner, "transfer", transfer)
        events.emit(world, owner, "transfer.updated", transfer, previous=previous)
    return transfer
