"""Balances per account and currency; every change of one is a balance transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import shapes
from .shapes import Obj

if TYPE_CHECKING:
    from .world import World

CATEGORIES = {
    "payment": "charge",
    "payment_refund": "refund",
    "transfer_refund": "transfer_reversal",
    "refund_failure": "refund_failure",
}


def balance(world: World, owner: str, currency: str) -> Obj:
    """The row {available, pending}, in minor units."""
    row = world.balances.get((owner, currency))
    if row is None:
        row = {"id": f"{owner}/{currency}", "available": 0, "pending": 0}
        world.balances[owner, currency] = row
    return row


def available(world: World, owner: str, currency: str) -> int:
    row = world.balances.get((owner, currency))
    return 0 if row is None else row["available"]


def post(
    world: World,
    owner: str,
    *,
    amount: int,
    currency: str,
    kind: str,
    source: str | None,
    available_on: float | None = None,
    category: str | None = None,
    description: str | None = None,
    fee: int = 0,
) -> Obj:
    """Move a balance by `amount - fee`, now or when `available_on` comes."""
    now = world.now()
    due = int(available_on or 0)  # Stripe's stamps are whole seconds
    pending = due > now
    row = balance(world, owner, currency)
    row["pending" if pending else "available"] += amount - fee
    world.store.changed(owner, "_balance", row)
    entry = shapes.make(
        "balance_transaction",
        id=world.new_id("txn"),
        amount=amount,
        available_on=due if pending else int(now),
        created=int(now),
        currency=currency,
        description=description,
        fee=fee,
        fee_details=[] if fee == 0 else _fee_details(fee, currency),
        net=amount - fee,
        reporting_category=category or CATEGORIES.get(kind, kind),
        source=source,
        status="pending" if pending else "available",
        type=kind,
    )
    world.store.put(owner, "balance_transaction", entry)
    if pending:
        world.later(due, "settle", {"owner": owner, "entry": entry["id"]})
    return entry


def _fee_details(fee: int, currency: str) -> list[Obj]:
    return [
        {
            "amount": fee,
            "application": None,
            "currency": currency,
            "description": "Stripe fees",
            "type": "stripe_fee",
        }
    ]


def settle(world: World, *, owner: str, entry: str) -> None:
    """A pending entry becomes available."""
    found = world.store.get(owner, "balance_transaction", entry)
    if found is None or found["status"] != "pending":
        return
    found["status"] = "available"
    row = balance(world, owner, found["currency"])
    row["pending"] -= found["net"]
    row["available"] += found["net"]
    world.store.changed(owner, "balance_transaction", found)
    world.store.changed(owner, "_balance", row)
    if found["net"] > 0:
        world.funds_arrived(owner, found["currency"], announce=True)


def as_object(world: World, owner: str) -> Obj:
    """The Balance object. `connect_reserved` is what sellers are below zero; it is shown, not withheld."""
    currencies = sorted({currency for who, currency in world.balances if who == owner})
    currencies = currencies or [world.default_currency(owner)]

    def amounts(field: str) -> list[Obj]:
        return [
            {"amount": amount, "currency": currency, "source_types": {"card": amount}}
            for currency in currencies
            for amount in [balance(world, owner, currency)[field]]
        ]

    fields: Obj = {"available": amounts("available"), "pending": amounts("pending")}
    if owner == world.platform:
        owed: dict[str, int] = dict.fromkeys(currencies, 0)
        for (who, currency), row in world.balances.items():
            if who != owner and row["available"] < 0:
                owed[currency] = owed.get(currency, 0) - row["available"]
        fields["connect_reserved"] = [{"amount": amount, "currency": each} for each, amount in owed.items()]
    made = shapes.make("balance", **fields, livemode=world.livemode)
    if owner != world.platform:
        made.pop("connect_reserved", None)
    return {name: value for name, value in made.items() if value is not None}


def shown(amount: int, currency: str) -> str:
    """An amount as Stripe's messages write it."""
    if currency in {"jpy", "krw", "vnd", "clp"}:
        return f"{amount} {currency}"
    sign = {"eur": "€", "usd": "$", "gbp": "£"}.get(currency)
    text = f"{amount // 100}.{amount % 100:02d}"
    return f"{sign}{text}" if sign else f"{text} {currency}"
