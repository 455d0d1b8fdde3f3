"""One API call, without its HTTP: parameters checked, endpoint run, answer kept under the key."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from . import errors, parameters, shapes, views
from .idempotency import Saved
from .routes import Route, resolve
from .shapes import Obj
from .world import World

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
KINDS = {
    "accounts": "account",
    "charges": "charge",
    "payment_intents": "payment_intent",
    "refunds": "refund",
    "reversals": "transfer_reversal",
    "transfers": "transfer",
    "webhook_endpoints": "webhook_endpoint",
}


@dataclass(slots=True)
class Answer:
    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    ran: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """`form` is the body of a POST, the query of anything else. `key` is None unless it counts."""

    route: Route
    ids: list[str]
    path: str
    owner: str
    form: str
    key: str | None
    request_id: str


def refusal(error: errors.StripeError, request_id: str) -> Answer:
    log_url = f"https://dashboard.stripe.com/test/logs/{request_id}"
    body = {"error": error.body["error"] | {"request_log_url": log_url}}
    return Answer(error.status, encode(body), dict(error.headers), error.ran)


def check(request: Request) -> Obj:
    """The parameters, typed. What they cannot be is refused here, before anything runs."""
    params = parameters.check(request.route.rule, parameters.decode(request.form))
    if request.route.name.startswith("POST"):
        names = [part for part in request.route.name.split("/") if part in KINDS]
        allowed = shapes.EXPANDABLE.get(KINDS[names[-1]], frozenset()) if names else frozenset()
        for path in params.get("expand", ()):
            if path.partition(".")[0] not in allowed | {"refunds", "reversals"}:
                raise errors.invalid(f"This property cannot be expanded ({path}).", param="expand")
    return params


def execute(world: World, request: Request, params: Obj, *, fault: str | None = None) -> Answer:
    """Effect, events and the kept answer in one transaction. `fault` may put a 500 in place of either."""
    post = request.route.name.startswith("POST")
    with world.transaction(request.request_id, request.key):
        try:
            if fault == "error_500":
                raise errors.server_fault()
            made = request.route.run(world, request.owner, request.ids, params)
            if params.get("expand"):
                made = views.expanded(world, made, params["expand"])
            answer = Answer(200, encode(made), ran=post)
            if fault == "error_500_after":
                raise errors.server_fault()
        except errors.StripeError as error:
            answer = refusal(error, request.request_id)
        if request.key is not None:
            _keep(world, request, answer)
    return answer


def _keep(world: World, request: Request, answer: Answer) -> None:
    assert request.key is not None
    if not answer.ran:
        world.keys.drop(request.owner, request.key)
        return
    saved = Saved(request.path, request.form, answer.status, answer.body, request.request_id, world.now())
    world.keys.keep(request.owner, request.key, saved)


def execute_late(world: World, *, path: str, owner: str, form: str, key: str | None, request_id: str) -> None:
    """The job behind the fault `late`: the effect of a call whose answer nobody waits for any more."""
    found = resolve("POST", path)
    assert found is not None
    request = Request(found[0], found[1], path, owner, form, key, request_id)
    try:
        params = check(request)
    except errors.StripeError:
        if key is not None:
            world.keys.drop(owner, key)
        return
    execute(world, request, params)
