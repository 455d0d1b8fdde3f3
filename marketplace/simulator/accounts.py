"""Connected accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors, events, shapes
from .metadata import merged
from .shapes import Obj
from .world import CURRENCY_OF_COUNTRY

if TYPE_CHECKING:
    from .world import World

_TYPES = {
    "standard": ("stripe", "account", "stripe", "full"),
    "express": ("application", "application", "stripe", "express"),
    "custom": ("application", "application", "application", "none"),
}


def _controller(params: Obj) -> tuple[Obj, str]:
    """The controller object and the account type it amounts to."""
    given: Obj = params.get("controller") or {}
    kind = params.get("type") or ("none" if given else "standard")
    losses, fees, collection, dashboard = _TYPES.get(kind, ("stripe", "account", "stripe", "full"))
    made = {
        "type": "application",
        "is_controller": True,
        "losses": {"payments": given.get("losses", {}).get("payments", losses)},
        "fees": {"payer": given.get("fees", {}).get("payer", fees)},
        "requirement_collection": given.get("requirement_collection", collection),
        "stripe_dashboard": {"type": given.get("stripe_dashboard", {}).get("type", dashboard)},
    }
    return made, kind


def create(world: World, params: Obj) -> Obj:
    """Requested capabilities are active at once; a standard account gets its usual two unasked."""
    if "type" in params and "controller" in params:
        raise errors.invalid("You may only specify one of these parameters: controller, type.", param="type")
    controller, kind = _controller(params)
    requested = params.get("capabilities") or {}
    capabilities = {name: "active" for name, each in requested.items() if each.get("requested")}
    if kind == "standard" and not requested:
        capabilities = {"card_payments": "active", "transfers": "active"}
    country = params.get("country") or world.settings.country
    id_ = params.get("id") or world.new_id("acct")
    account = shapes.make(
        "account",
        id=id_,
        business_type=params.get("business_type"),
        capabilities=capabilities,
        controller=controller,
        country=country,
        created=int(world.now()),
        default_currency=params.get("default_currency") or CURRENCY_OF_COUNTRY.get(country, "eur"),
        email=params.get("email"),
        external_accounts=shapes.page(f"/v1/accounts/{id_}/external_accounts", []),
        metadata=merged({}, params.get("metadata")),
        type=kind,
    )
    if params.get("business_profile"):
        account["business_profile"] = {**account["business_profile"], **params["business_profile"]}
    settings = account["settings"]
    debits = controller["requirement_collection"] != "application"
    account["settings"] = {**settings, "payouts": {**settings["payouts"], "debit_negative_balances": debits}}
    world.store.put(world.platform, "account", account)
    return account


def get(world: World, id_: str) -> Obj:
    account = world.store.get(world.platform, "account", id_)
    if account is None:
        raise errors.no_access(id_, "sk_test_***")
    return account


def update(world: World, account: Obj, params: Obj) -> Obj:
    changes: Obj = {}
    for name in ("email", "business_type", "default_currency"):
        if name in params:
            changes[name] = params[name] or None
    if "metadata" in params:
        changes["metadata"] = merged(account["metadata"], params["metadata"])
    if params.get("business_profile"):
        changes["business_profile"] = {**account["business_profile"], **params["business_profile"]}
    if params.get("capabilities"):
        capabilities = dict(account["capabilities"])
        for name, each in params["capabilities"].items():
            if each.get("requested"):
                capabilities.setdefault(name, "active")
            else:
                capabilities.pop(name, None)
        changes["capabilities"] = capabilities
    if params.get("settings"):
        changes["settings"] = _deep(account["settings"], params["settings"])
    return change(world, account, changes)


def change(world: World, account: Obj, changes: Obj) -> Obj:
    """Apply changes, and tell the platform's Connect endpoints what was there before."""
    previous = {name: account.get(name) for name, value in changes.items() if account.get(name) != value}
    if not previous:
        return account
    account.update(changes)
    world.store.changed(world.platform, "account", account)
    events.emit(world, account["id"], "account.updated", account, previous=previous)
    return account


def delete(world: World, account: Obj) -> Obj:
    if any(who == account["id"] and (row["available"] or row["pending"]) for (who, _), row in world.balances.items()):
        raise errors.refused("This account cannot be deleted: its balance is not zero.")
    world.store.remove(world.platform, "account", account["id"])
    return {"id": account["id"], "object": "account", "deleted": True}


def deauthorize(world: World, account: Obj) -> None:
    """The seller disconnects: calls made as the account answer 403 from now on."""
    flag(world, account["id"], revoked=True)
    application = {"id": "ca_simulated", "object": "application", "name": "Simulated platform"}
    events.emit(world, account["id"], "account.application.deauthorized", application)


def flags(world: World, owner: str) -> Obj:
    """What the simulator knows about an account and Stripe's object does not show."""
    found = world.store.get(world.platform, "_flags", f"flags/{owner}")
    return found or {"id": f"flags/{owner}", "may_go_negative": None, "revoked": False}


def flag(world: World, owner: str, **values: Any) -> Obj:
    return world.store.put(world.platform, "_flags", flags(world, owner) | values)


def _deep(old: Obj, new: Obj) -> Obj:
    made = dict(old)
    for name, value in new.items():
        made[name] = _deep(made.get(name) or {}, value) if isinstance(value, dict) else value
    return made
