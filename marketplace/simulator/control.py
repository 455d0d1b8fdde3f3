"""The simulator's own HTTP interface below `/_simulator/`: time, faults, what happens outside the API, the
audit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from . import audit_page, errors
from .audit import audit
from .dashboard import Dashboard

if TYPE_CHECKING:
    from .core import Core

Body = dict[str, Any]


class Control:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.dashboard = Dashboard(core)
        # Method, first path part, what it does with (rest of the path, body).
        self._acts: dict[tuple[str, str], Callable[[list[str], Body], Any]] = {
            ("GET", ""): lambda _rest, _body: self._index(),
            ("GET", "clock"): lambda _rest, _body: self._clock(),
            ("POST", "clock"): self._move_clock,
            ("GET", "faults"): lambda _rest, _body: core.faults.described(),
            ("POST", "faults"): self._add_fault,
            ("DELETE", "faults"): self._clear_faults,
            ("GET", "requests"): lambda _rest, body: self._requests(body),
            ("DELETE", "requests"): lambda _rest, _body: self._clear_requests(),
            ("GET", "settings"): lambda _rest, _body: self.dashboard.set(),
            ("POST", "settings"): lambda _rest, body: self.dashboard.set(**body),
            ("GET", "webhooks"): lambda _rest, _body: vars(core.delivery.faults) | {"urls": core.delivery.urls},
            ("POST", "webhooks"): lambda _rest, body: self._webhooks(body),
            ("POST", "limits"): lambda _rest, body: self._limits(body),
            ("POST", "accounts"): self._account,
            ("POST", "refunds"): self._refund,
            ("POST", "disputes"): self._dispute,
            ("POST", "reversals"): self._reversal,
            ("POST", "dashboard"): self._by_hand,
            ("POST", "events"): self._event,
            ("POST", "keys"): lambda _rest, body: self._keys(body),
            ("POST", "webhook_endpoints"): self._endpoint,
            ("POST", "reset"): lambda _rest, _body: self._reset(),
            ("GET", "audit"): lambda _rest, _body: audit(core.world),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if not _from_here(request):
            return _json(403, {"error": "the simulator's control answers programs on this machine, not web pages"})
        parts = [part for part in request.path.split("/")[2:] if part]
        name, rest = (parts[0], parts[1:]) if parts else ("", [])
        act = self._acts.get((request.method, name))
        if act is None:
            return _json(404, {"error": f"no {request.method} {request.path}", **self._index()})
        try:
            made = act(rest, _body(await request.read(), dict(request.rel_url.query)))
        except errors.StripeError as error:
            return _json(error.status, error.body)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            text = f"missing: {error}" if isinstance(error, KeyError) else str(error)
            return _json(400, {"error": text})
        if name == "audit" and _wants_page(request):
            return web.Response(text=audit_page.render(made), content_type="text/html")
        return _json(200, made)

    def _index(self) -> Body:
        return {"endpoints": sorted(f"{method} /_simulator/{name}" for method, name in self._acts)}

    # Time

    def _clock(self) -> Body:
        return {
            "now": self.core.world.now(),
            "frozen": self.core.clock.frozen,
            "offset": self.core.clock.offset,
        }

    def _move_clock(self, _rest: list[str], body: Body) -> Body:
        """{"advance": seconds}, {"set": unix time}, {"freeze": true or unix time}, {"run": true}."""
        core = self.core
        unknown = set(body) - {"advance", "set", "freeze", "run"}
        if unknown or not body:
            raise ValueError("the clock takes advance, set, freeze or run")
        with core.world.lock:
            if "freeze" in body:
                core.clock.freeze(None if body["freeze"] is True else float(body["freeze"]))
            if "set" in body or "advance" in body:
                target = float(body["set"]) if "set" in body else core.world.now() + float(body["advance"])
                if target >= core.world.now():
                    core.world.run_due(until=target)
                else:
                    core.clock.move_to(target)
            if body.get("run"):
                core.clock.run()
            if core.journal is not None:
                core.journal.moved(core.world)
        core.on_wake()
        return self._clock()

    # Faults

    def _add_fault(self, _rest: list[str], body: Body) -> Body:
        rule = self.core.faults.add(**body)
        return {"id": rule.id, "action": rule.action}

    def _clear_faults(self, rest: list[str], _body: Body) -> Body:
        if rest:
            return {"removed": self.core.faults.remove(rest[0])}
        self.core.faults.clear()
        return {}

    def _limits(self, body: Body) -> Body:
        for name, limit in (
            ("rate_limit", self.core.endpoint_limit),
            ("global_rate_limit", self.core.global_limit),
        ):
            if name in body:
                limit.per_second = None if body[name] is None else int(body[name])
        return {
            "rate_limit": self.core.endpoint_limit.per_second,
            "global_rate_limit": self.core.global_limit.per_second,
        }

    def _requests(self, body: Body) -> Body:
        log = self.core.log
        return {
            "total": log.total,
            "in_flight_max": log.in_flight_max,
            "data": log.described(int(body.get("limit", 100))),
        }

    def _clear_requests(self) -> Body:
        self.core.log.clear()
        return {}

    def _reset(self) -> Body:
        self.core.reset()
        return {}

    # Outside the API

    def _account(self, rest: list[str], body: Body) -> Body:
        id_, do = rest[0], self.dashboard
        if "may_go_negative" in body:
            do.may_go_negative(id_, body["may_go_negative"])
        for capability, status in body.get("capabilities", {}).items():
            do.set_capability(id_, capability, status)
        if "add_funds" in body:
            do.add_funds(account=id_, **body["add_funds"])
        if body.get("pay_out"):
            do.pay_out(id_, body["pay_out"] if isinstance(body["pay_out"], str) else None)
        if body.get("deauthorize"):
            do.deauthorize(id_)
        balances = [row for row in audit(self.core.world)["accounts"] if row["account"] == id_]
        return {"account": id_, "balances": balances}

    def _refund(self, rest: list[str], body: Body) -> Body:
        id_, act = rest
        acts: dict[str, Callable[..., Body]] = {
            "succeed": self.dashboard.succeed_refund,
            "fail": self.dashboard.fail_refund,
            "cancel": self.dashboard.cancel_refund,
            "require_action": self.dashboard.require_action,
        }
        if act not in acts:
            raise ValueError(f"a refund can {', '.join(acts)}: not {act!r}")
        return acts[act](id_, **body)

    def _dispute(self, rest: list[str], body: Body) -> Body:
        if not rest:
            return self.dashboard.open_dispute(**body)
        id_, *act = rest
        acts: dict[str, Callable[..., Body]] = {
            "respond": self.dashboard.respond_to_dispute,
            "escalate": self.dashboard.escalate_dispute,
        }
        if not act:
            return self.dashboard.close_dispute(id_, **{"status": "lost", **body})
        if act[0] not in acts:
            raise ValueError(f"a dispute can {', '.join(acts)}: not {act[0]!r}")
        return acts[act[0]](id_)

    def _reversal(self, rest: list[str], body: Body) -> Body:
        return self.dashboard.stop_waiting(rest[0], body.get("status", "failed"))

    def _by_hand(self, rest: list[str], body: Body) -> Body:
        acts: dict[str, Callable[..., Body]] = {
            "account": self.dashboard.create_account,
            "charge": self.dashboard.create_charge,
            "refund": self.dashboard.create_refund,
            "reversal": self.dashboard.create_reversal,
            "transfer": self.dashboard.create_transfer,
        }
        act = acts.get(rest[0] if rest else "")
        if act is None:
            raise ValueError(f"by hand you can make: {', '.join(acts)}")
        return act(**body)

    def _event(self, rest: list[str], _body: Body) -> Body:
        if rest[1:] != ["resend"]:
            raise ValueError("POST /_simulator/events/{id}/resend")
        return {"endpoints": self.dashboard.resend(rest[0])}

    def _keys(self, body: Body) -> Body:
        if "revoke" in body:
            self.dashboard.revoke_key(body["revoke"])
        if "restore" in body:
            self.dashboard.restore_key(body["restore"])
        return {"revoked": len(self.core.revoked_keys)}

    def _endpoint(self, rest: list[str], body: Body) -> Body:
        if rest[1:] != ["roll_secret"]:
            raise ValueError("POST /_simulator/webhook_endpoints/{id}/roll_secret")
        return {"secret": self.dashboard.roll_secret(rest[0], **body)}

    def _webhooks(self, body: Body) -> Body:
        delivery = self.core.delivery
        if "urls" in body:
            delivery.urls = tuple(body.pop("urls"))
        delivery.faults = type(delivery.faults)(**vars(delivery.faults) | body)
        return vars(delivery.faults) | {"urls": delivery.urls}


def _body(raw: bytes, query: dict[str, str]) -> Body:
    body = json.loads(raw) if raw else query
    if not isinstance(body, dict):
        raise TypeError("the body must be a JSON object")
    return body


def _from_here(request: web.BaseRequest) -> bool:
    """Refuse pages of other origins and names that merely resolve to this machine."""
    host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    if host != "localhost" and not host.startswith("127.") and host != "::1":
        return False
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")


def _wants_page(request: web.BaseRequest) -> bool:
    wanted = request.rel_url.query.get("format")
    return wanted == "html" or (wanted is None and "text/html" in request.headers.get("Accept", ""))


def _json(status: int, body: Any) -> web.Response:
    return web.Response(status=status, text=json.dumps(body, indent=2, default=str), content_type="application/json")
