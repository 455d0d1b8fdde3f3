"""Every endpoint of the API that the simulator answers, and what each does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import (
    accounts,
    disputes,
    errors,
    events,
    ledger,
    parameters,
    payments,
    refunds,
    reversals,
    transfers,
    views,
    webhook_endpoints,
)
from .shapes import Obj
from .world import World

Handler = Callable[[World, str, list[str], Obj], Obj]


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    """As in Stripe's description: "POST /v1/transfers/{id}/reversals"."""
    run: Handler
    rule: parameters.Rule


_ROUTES: dict[str, Handler] = {}


def _on(name: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        _ROUTES[name] = handler
        return handler

    return add


def _get(world: World, owner: str, kind: str, id_: str, noun: str | None = None) -> Obj:
    found = world.store.get(owner, kind, id_)
    if found is None:
        # Row 5 of the errors: the right id under the wrong kind of key is a 404 too; ids here live in one
        # mode only.
        raise errors.missing_object(noun or kind.replace("_", " "), id_)
    return found


def _retrieve(name: str, kind: str, noun: str | None = None) -> None:
    _ROUTES[name] = lambda world, owner, ids, _params: _get(world, owner, kind, ids[0], noun)


def _list(name: str, kind: str, *fields: str) -> None:
    url = name.split()[1]
    _ROUTES[name] = lambda world, owner, _ids, params: views.page(world, owner, kind, url, params, fields=fields)


_retrieve("GET /v1/transfers/{transfer}", "transfer")
_retrieve("GET /v1/charges/{charge}", "charge")
_retrieve("GET /v1/refunds/{refund}", "refund")
_retrieve("GET /v1/payment_intents/{intent}", "payment_intent", "payment_intent")
_retrieve("GET /v1/balance_transactions/{id}", "balance_transaction", "balance transaction")
_retrieve("GET /v1/disputes/{dispute}", "dispute")
_retrieve("GET /v1/webhook_endpoints/{webhook_endpoint}", "webhook_endpoint", "webhook endpoint")
_list("GET /v1/transfers", "transfer", "destination", "transfer_group")
_list("GET /v1/charges", "charge", "payment_intent", "transfer_group", "customer")
_list("GET /v1/refunds", "refund", "charge", "payment_intent")
_list("GET /v1/payment_intents", "payment_intent", "customer")
_list("GET /v1/disputes", "dispute", "charge", "payment_intent")
_list("GET /v1/webhook_endpoints", "webhook_endpoint")
_list("GET /v1/accounts", "account")


@_on("GET /v1/account")
def _own_account(world: World, owner: str, _ids: list[str], _params: Obj) -> Obj:
    return _account(world, owner)


@_on("GET /v1/accounts/{account}")
def _retrieve_account(world: World, _owner: str, ids: list[str], _params: Obj) -> Obj:
    return _account(world, ids[0])


def _account(world: World, id_: str) -> Obj:
    """Stripe answers 403 for an account that is not connected: it does not tell whether it exists."""
    found = world.account(id_)
    if found is None or accounts.flags(world, id_)["revoked"]:
        raise errors.no_access(id_, "sk_test_***")
    return found


@_on("POST /v1/accounts")
def _create_account(world: World, _owner: str, _ids: list[str], params: Obj) -> Obj:
    return accounts.create(world, params)


@_on("POST /v1/accounts/{account}")
def _update_account(world: World, _owner: str, ids: list[str], params: Obj) -> Obj:
    return accounts.update(world, _account(world, ids[0]), params)


@_on("DELETE /v1/accounts/{account}")
def _delete_account(world: World, _owner: str, ids: list[str], _params: Obj) -> Obj:
    return accounts.delete(world, _account(world, ids[0]))


@_on("POST /v1/payment_intents")
def _create_intent(world: World, owner: str, _ids: list[str], params: Obj) -> Obj:
    return payments.create(world, owner, params)


def _intent(act: Callable[[World, str, Obj, Obj], Obj]) -> Handler:
    return lambda world, owner, ids, params: act(
        world, owner, _get(world, owner, "payment_intent", ids[0], "payment_intent"), params
    )


_ROUTES["POST /v1/payment_intents/{intent}"] = _intent(payments.update)
_ROUTES["POST /v1/payment_intents/{intent}/confirm"] = _intent(payments.confirm)
_ROUTES["POST /v1/payment_intents/{intent}/cancel"] = _intent(payments.cancel)


@_on("POST /v1/charges/{charge}")
def _update_charge(world: World, owner: str, ids: list[str], params: Obj) -> Obj:
    return payments.update_charge(world, owner, _get(world, owner, "charge", ids[0]), params)


@_on("POST /v1/refunds")
def _create_refund(world: World, owner: str, _ids: list[str], params: Obj) -> Obj:
    return refunds.create(world, owner, params)


@_on("POST /v1/refunds/{refund}")
def _update_refund(world: World, owner: str, ids: list[str], params: Obj) -> Obj:
    return refunds.update(world, owner, _get(world, owner, "refund", ids[0]), params)


@_on("POST /v1/refunds/{refund}/cancel")
def _cancel_refund(world: World, owner: str, ids: list[str], _params: Obj) -> Obj:
    return refunds.cancel(world, owner, _get(world, owner, "refund", ids[0]))


@_on("POST /v1/transfers")
def _create_transfer(world: World, owner: str, _ids: list[str], params: Obj) -> Obj:
    return transfers.create(world, owner, params)


@_on("POST /v1/transfers/{transfer}")
def _update_transfer(world: World, owner: str, ids: list[str], params: Obj) -> Obj:
    return transfers.update(world, owner, _get(world, owner, "transfer", ids[0]), params)


@_on("POST /v1/transfers/{id}/reversals")
def _create_reversal(world: World, owner: str, ids: list[str], params: Obj) -> Obj:
    return reversals.create(world, owner, _get(world, owner, "transfer", ids[0]), params)


@_on("GET /v1/transfers/{id}/reversals")
def _list_reversals(world: World, owner: str, ids: list[str], params: Obj) -> Obj:
    _get(world, owner, "transfer", ids[0])
    url = f"/v1/transfers/{ids[0]}/reversals"
    return views.page(world, owner, "transfer_reversal", url, params, transfer=ids[0])


def _reversal(world: World, owner: str, ids: list[str]) -> Obj:
    _get(world, owner, "transfer", ids[0])
    found = _get(world, owner, "transfer_reversal", ids[1], "transfer reversal")
    if found["transfer"] != ids[0]:
        raise errors.missing_object("transfer reversal", ids[1])
    return found


@_on("GET /v1/transfers/{transfer}/reversals/{id}")
def _retrieve_reversal(world: World, owner: str, ids: list[str], _params: Obj) -> Obj:
    return _reversal(world, owner, ids)


@_on("POST /v1/transfers/{transfer}/reversals/{id}")
def _update_reversal(world: World, owner: str, ids: list[str], params: Obj) -> Obj:
    return reversals.update(world, owner, _reversal(world, owner, ids), params)


@_on("GET /v1/balance")
def _balance(world: World, owner: str, _ids: list[str], _params: Obj) -> Obj:
    return ledger.as_object(world, owner)


@_on("GET /v1/balance_transactions")
def _list_entries(world: World, owner: str, _ids: list[str], params: Obj) -> Obj:
    """`source=trr_…` finds nothing: a reversal's entry names the transfer (whether Stripe helps is
    unconfirmed).
    """
    fields = ("type", "source", "currency")
    return views.page(world, owner, "balance_transaction", "/v1/balance_transactions", params, fields=fields)


@_on("GET /v1/events")
def _list_events(world: World, owner: str, _ids: list[str], params: Obj) -> Obj:
    """Without `delivery_success` all; with false those not (yet) taken by every endpoint. Kept for 30
    days.
    """
    if "type" in params and "types" in params:
        raise errors.invalid("You may only specify one of these parameters: type, types.", code="parameters_exclusive")
    if len(params.get("types", ())) > 20:
        raise errors.invalid("You may pass up to 20 types.", param="types")
    oldest = world.now() - 30 * 24 * 3600
    exact, prefix = None, None
    if params.get("type", "").endswith("*"):
        prefix = params["type"][:-1]
    elif "type" in params:
        exact = {"type": params["type"]}
    types, delivered = params.get("types"), params.get("delivery_success")

    def keep(event: Obj) -> bool:
        return (
            event["created"] >= oldest
            and (types is None or event["type"] in types)
            and (prefix is None or event["type"].startswith(prefix))
            and (delivered is None or delivered == (event["pending"] == 0))
        )

    return views.page(
        world, owner, "event", "/v1/events", params,
        keep=keep, show=lambda event: events.as_object(world, event), **(exact or {}),
    )  # fmt: skip


@_on("GET /v1/events/{id}")
def _retrieve_event(world: World, owner: str, ids: list[str], _params: Obj) -> Obj:
    return events.as_object(world, _get(world, owner, "event", ids[0]))


@_on("POST /v1/disputes/{dispute}/close")
def _close_dispute(world: World, owner: str, ids: list[str], _params: Obj) -> Obj:
    return disputes.close(world, owner, _get(world, owner, "dispute", ids[0])["id"], status="lost")


@_on("POST /v1/webhook_endpoints")
def _create_endpoint(world: World, owner: str, _ids: list[str], params: Obj) -> Obj:
    return webhook_endpoints.create(world, owner, params)


@_on("POST /v1/webhook_endpoints/{webhook_endpoint}")
def _update_endpoint(world: World, owner: str, ids: list[str], params: Obj) -> Obj:
    found = _get(world, owner, "webhook_endpoint", ids[0], "webhook endpoint")
    return webhook_endpoints.update(world, owner, found, params)


@_on("DELETE /v1/webhook_endpoints/{webhook_endpoint}")
def _delete_endpoint(world: World, owner: str, ids: list[str], _params: Obj) -> Obj:
    found = _get(world, owner, "webhook_endpoint", ids[0], "webhook endpoint")
    return webhook_endpoints.delete(world, owner, found)


def _unanswered(name: str) -> Handler:
    def refuse(_world: World, _owner: str, _ids: list[str], _params: Obj) -> Obj:
        raise errors.not_simulated(name)

    return refuse


for _name in parameters.rules():
    if _name not in _ROUTES:
        _ROUTES[_name] = _unanswered(_name)


def _tree() -> dict[str, Any]:
    """Path segments nested; `*` stands for an id, the method ends the path."""
    tree: dict[str, Any] = {}
    for name, handler in _ROUTES.items():
        method, path = name.split()
        node = tree
        for part in path.split("/")[2:]:
            node = node.setdefault("*" if part.startswith("{") else part, {})
        node[f" {method}"] = Route(name, handler, parameters.rules()[name])
    return tree


_TREE = _tree()
NAMES = tuple(_ROUTES)


def resolve(method: str, path: str) -> tuple[Route, list[str]] | None:
    """The route for `/v1/…` and the ids in the path. An empty id matches nothing."""
    node, ids = _TREE, []
    for part in path.split("/")[2:]:
        inner = node.get(part)
        if inner is None:
            inner = node.get("*")
            if inner is None or not part:
                return None
            ids.append(part)
        node = inner
    route = node.get(f" {method}")
    return None if route is None else (route, ids)
