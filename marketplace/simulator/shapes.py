"""Objects in Stripe's full shape, started from Stripe's own samples.

The values nested in a sample are shared by all objects made from it. They are never changed in place: whoever
changes a nested value puts a new one in its stead.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

Obj = dict[str, Any]

_DATA: Obj = json.loads(
    (resources.files(__package__ or "marketplace.simulator") / "data" / "objects.json").read_text()
)["objects"]

EXPANDABLE: dict[str, frozenset[str]] = {kind: frozenset(each["expandable"]) for kind, each in _DATA.items()}
PREFIXES = {
    "account": "acct",
    "balance_transaction": "txn",
    "charge": "ch",
    "dispute": "dp",
    "event": "evt",
    "payment_intent": "pi",
    "payment_method": "pm",
    "refund": "re",
    "transfer": "tr",
    "transfer_reversal": "trr",
    "webhook_endpoint": "we",
}
# What the sample shows only because it shows everything at once.
_DIFFERENT: dict[str, Obj] = {
    "account": {
        "charges_enabled": True,
        "payouts_enabled": True,
        "details_submitted": True,
        "requirements": {
            "alternatives": [],
            "current_deadline": None,
            "currently_due": [],
            "disabled_reason": None,
            "errors": [],
            "eventually_due": [],
            "past_due": [],
            "pending_verification": [],
        },
    },
    "charge": {
        "description": None,
        "paid": True,
        "captured": True,
        "shipping": None,
        "transfer_data": None,
        "source": None,
        "receipt_url": "https://pay.stripe.com/receipts/simulated",
        "outcome": {
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "seller_message": "Payment complete.",
            "type": "authorized",
        },
    },
    "payment_intent": {
        "canceled_at": None,
        "last_payment_error": None,
        "next_action": None,
        "processing": None,
        "shipping": None,
        "transfer_data": None,
        "payment_method_configuration_details": None,
        "amount_details": {"tip": {}},
        "managed_payments": {"enabled": False},
    },
    "balance_transaction": {"description": None},
    "dispute": {"status": "needs_response", "is_charge_refundable": False},
    "webhook_endpoint": {"description": None},
}
_LEFT_OUT = {"charge": ("refunds",)}  # embedded only when expanded, since API version 2022-11-15


def _base(kind: str) -> Obj:
    about = _DATA[kind]
    base: Obj = about["sample"] | _DIFFERENT.get(kind, {})
    for name, field in about["fields"].items():
        if field["nullable"]:
            base.setdefault(name, None)
    for name in _LEFT_OUT.get(kind, ()):
        base.pop(name, None)
    return base


_BASES = {kind: _base(kind) for kind in _DATA}


def make(kind: str, **fields: Any) -> Obj:
    return {**_BASES[kind], **fields}


def reference(kind: str) -> Obj:
    """What Stripe's description says of a kind: its sample, its required fields, every field's type."""
    about: Obj = _DATA[kind]
    return about


def page(url: str, data: list[Any], *, has_more: bool = False, **more: Any) -> Obj:
    return {"object": "list", "data": data, "has_more": has_more, "url": url, **more}
