"""What really happened, whatever anyone was told: sums per transfer and account, and what looks wrong."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .world import World

# Metadata that names one operation. A refund's id stands once per transfer, the others once in all.
OPERATION = re.compile(r"(?:.*_)?(op|operation|reversal|idempotency|refund)_?(?:id|key|uuid)?\Z", re.IGNORECASE)


def audit(world: World) -> dict[str, Any]:
    """`problems` are breaches of the simulator's own bookkeeping; `suspicious` is what a client did oddly."""
    with world.lock:
        transfers, suspicious = _transfers(world)
        accounts, problems = _accounts(world)
        problems += [
            f"{each['id']}: reversals add up to {each['reversed_sum']}, amount_reversed says {each['amount_reversed']}"
            for each in transfers
            if each["reversed_sum"] != each["amount_reversed"]
        ]
        problems += [
            f"{each['id']}: {each['reversed_sum']} reversed of {each['amount']}"
            for each in transfers
            if each["reversed_sum"] > each["amount"]
        ]
        return {
            "at": world.now(),
            "seed": world.seed,
            "ok": not problems,
            "problems": problems,
            "suspicious": suspicious,
            "accounts": accounts,
            "totals": {
                "transfers": len(transfers),
                "reversals": sum(len(each["reversals"]) for each in transfers),
                "transferred": _sums(transfers, "amount"),
                "reversed": _sums(transfers, "reversed_sum"),
            },
            "transfers": transfers,
        }


def _sums(transfers: list[dict[str, Any]], field: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in transfers:
        total[each["currency"]] += each[field]
    return dict(total)


def _transfers(world: World) -> tuple[list[dict[str, Any]], list[str]]:
    by_transfer: dict[str, list[dict[str, Any]]] = {}
    seen: dict[tuple[str, str, str], list[str]] = {}
    for row in world.store.table(world.platform, "transfer_reversal").rows.values():
        shown = {
            "id": row["id"],
            "amount": row["amount"],
            "created": row["created"],
            "metadata": dict(row["metadata"]),
            "idempotency_key": world.made_by.get(row["id"]),
        }
        if "status" in row:
            shown["status"] = row["status"]
        by_transfer.setdefault(row["transfer"], []).append(shown)
        for name, value in row["metadata"].items():
            named = OPERATION.match(name)
            if named is not None:
                where = row["transfer"] if named[1].lower() == "refund" else "all transfers"
                seen.setdefault((where, name, value), []).append(row["id"])
    found = []
    for row in world.store.table(world.platform, "transfer").rows.values():
        reversals = by_transfer.get(row["id"], [])
        found.append(
            {
                "id": row["id"],
                "destination": row["destination"],
                "currency": row["currency"],
                "amount": row["amount"],
                "amount_reversed": row["amount_reversed"],
                "reversed": row["reversed"],
                "reversed_sum": sum(e["amount"] for e in reversals if e.get("status", "succeeded") == "succeeded"),
                "metadata": dict(row["metadata"]),
                "reversals": reversals,
            }
        )
    suspicious = [
        f"{where}: {len(ids)} reversals with {name}={value}: {', '.join(ids)}"
        for (where, name, value), ids in seen.items()
        if len(ids) > 1
    ]
    return found, suspicious


def _accounts(world: World) -> tuple[list[dict[str, Any]], list[str]]:
    sums: dict[tuple[str, str], list[int]] = {}
    for (owner, kind), table in world.store.tables.items():
        if kind == "balance_transaction":
            for entry in table.rows.values():
                pair = sums.setdefault((owner, entry["currency"]), [0, 0])
                pair[entry["status"] == "pending"] += entry["net"]
    accounts, problems = [], []
    for (owner, currency), row in sorted(world.balances.items()):
        available, pending = sums.get((owner, currency), [0, 0])
        matches = (available, pending) == (row["available"], row["pending"])
        accounts.append(
            {
                "account": owner,
                "currency": currency,
                "available": row["available"],
                "pending": row["pending"],
                "balances": matches,
            }
        )
        if not matches:
            problems.append(
                f"{owner} {currency}: balance {row['available']}+{row['pending']} pending, its "
                "transactions add up to "
                f"{available}+{pending}"
            )
    return accounts, problems
