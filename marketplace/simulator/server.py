"""The HTTP face: authorization, faults, limits and keys around the calls, on a loopback address."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import logging
import socket
import time
from typing import TYPE_CHECKING

from aiohttp import web

from . import calls, control, errors, faults
from .calls import Answer
from .request_log import RequestRecord
from .routes import Route, resolve

if TYPE_CHECKING:
    from .core import Core

logger = logging.getLogger(__name__)
HTTP_OK = 200
KEY_MAX = 255
KEY_PREFIXES = ("sk_test_", "sk_live_", "rk_")


SPOILING = {
    "conflict",
    "drop_before",
    "forbidden",
    "lock_timeout",
    "rate_limited",
    "unauthorized",
    "unavailable",
}


class Dropped(Exception):
    """The connection is to be closed without an answer."""


class Server:
    def __init__(self, core: Core, *, host: str = "127.0.0.1", port: int = 0) -> None:
        require_loopback(host)
        self.core = core
        self.host, self.port = host, port
        self.control = control.Control(core)
        self._runner: web.ServerRunner | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arming = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.05)
        await runner.setup()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
            await web.SockSite(runner, listener, backlog=1024).start()
        except BaseException:
            listener.close()
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = listener.getsockname()[1]
        self._attach()
        self.core.on_wake = self._wake
        self.core.on_reset = self._on_reset
        self._arm()

    def _attach(self) -> None:
        assert self._loop is not None
        self.core.delivery.attach(self._loop)

    def _on_reset(self) -> None:
        assert self._loop is not None
        for old in self.core.retired:
            asyncio.run_coroutine_threadsafe(old.close(), self._loop)
        self.core.retired.clear()
        self._attach()
        self._wake()

    async def stop(self) -> None:
        self.core.on_wake = lambda: None
        if self._timer is not None:
            self._timer.cancel()
        if self._runner is not None:
            for connection in list(self._runner.server.connections if self._runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()
        await self.core.delivery.close()

    # What is due later

    def _wake(self) -> None:
        """Any thread may have planned something sooner than what the timer waits for."""
        if not self._arming and self._loop is not None and not self._loop.is_closed():
            self._arming = True
            self._loop.call_soon_threadsafe(self._arm)

    def _arm(self) -> None:
        self._arming = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        world = self.core.world
        with world.lock:
            due = world.next_due()
        if due is None or self._loop is None:
            return
        wait = due - world.now()
        if wait <= 0 or not world.clock.frozen:
            self._timer = self._loop.call_later(min(max(wait, 0), 86_400), self._tick)

    def _tick(self) -> None:
        try:
            self.core.world.run_due()
        finally:
            self._arm()

    # One request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path.startswith("/_simulator"):
            return await self.control.handle(request)
        method = request.method
        post = method == "POST"
        form = (await request.read()).decode("utf-8", "replace") if post else request.rel_url.raw_query_string
        headers = request.headers
        found = resolve(method, path) if path.startswith("/v1/") else None
        core = self.core
        record = RequestRecord(
            id=core.log.new_id(),
            at=core.world.now(),
            method=method,
            path=path,
            endpoint=found[0].name if found else "",
            account=headers.get("Stripe-Account", core.world.platform),
            key=headers.get("Idempotency-Key") if post else None,
            form=form,
        )
        core.log.start(record)
        started = time.perf_counter()
        try:
            return await self._serve(request, record, found)
        finally:
            record.seconds = time.perf_counter() - started
            core.log.end(record)

    async def _serve(
        self, request: web.BaseRequest, record: RequestRecord, found: tuple[Route, list[str]] | None
    ) -> web.StreamResponse:
        rule: faults.Rule | None = None
        try:
            verdict = self._judge(record, found)
            rule = verdict.rule
            record.fault = rule.action if rule is not None else None
            answer = await self._answer(request, record, found, verdict)
        except errors.StripeError as error:
            answer = calls.refusal(error, record.id)
        except Dropped:
            return self._drop(request)
        except Exception:
            logger.exception("%s %s failed inside the simulator", record.method, record.path)
            answer = calls.refusal(errors.server_fault(), record.id)
        if rule is not None and rule.action == "drop_after":
            await asyncio.sleep(rule.hold)
            return self._drop(request)
        return self._send(request, record, answer, rule)

    def _judge(self, record: RequestRecord, found: tuple[Route, list[str]] | None) -> faults.Verdict:
        plan = self.core.faults
        if found is None or not len(plan):
            return faults.Verdict()
        return plan.judge(
            faults.Call(
                method=record.method,
                endpoint=found[0].name,
                ids=tuple(found[1]),
                accounts=self._accounts(record, found[1]),
            )
        )

    def _accounts(self, record: RequestRecord, ids: list[str]) -> tuple[str, ...]:
        """Whose money the call is about, as far as can be told from outside."""
        accounts = [record.account]
        accounts += [part.partition("=")[2] for part in record.form.split("&") if part.startswith("destination=")]
        for id_ in ids:
            transfer = self.core.world.store.get(self.core.world.platform, "transfer", id_)
            if transfer is not None:
                accounts.append(transfer["destination"])
        return tuple(accounts)

    async def _answer(
        self,
        request: web.BaseRequest,
        record: RequestRecord,
        found: tuple[Route, list[str]] | None,
        verdict: faults.Verdict,
    ) -> Answer:
        rule, core, world = verdict.rule, self.core, self.core.world
        if rule is not None and rule.action in SPOILING:
            await asyncio.sleep(verdict.seconds)
            await self._spoil(request, record, rule)
        owner = self._owner(request)
        if found is None:
            raise errors.unrecognized(record.method, record.path)
        route, ids = found
        self._require_mode(request, ids)
        for limit, name, reason in (
            (core.global_limit, "", "global-rate"),
            (core.endpoint_limit, route.name, "endpoint-rate"),
        ):
            if limit.per_second is not None and not limit.allows(name):
                raise errors.too_many_requests(reason)
        call = calls.Request(route, ids, record.path, owner, record.form, record.key, record.id)
        if call.key is None:
            if verdict.seconds:
                await asyncio.sleep(verdict.seconds)
            params = calls.check(call)
            if rule is not None and rule.action == "late":
                await self._postpone(call, rule)
            return calls.execute(world, call, params, fault=record.fault)
        return await self._keyed(call, record, verdict)

    async def _keyed(self, call: calls.Request, record: RequestRecord, verdict: faults.Verdict) -> Answer:
        world, key = self.core.world, call.key
        assert key is not None
        if len(key) > KEY_MAX:
            raise errors.invalid(f"Idempotency-Key must be at most {KEY_MAX} characters; yours has {len(key)}.")
        with world.lock:
            saved = world.keys.lookup(call.owner, key, path=call.path, form=call.form)
            params = {} if saved is not None else calls.check(call)
            if saved is None:
                world.keys.begin(call.owner, key, path=call.path, form=call.form)
        if saved is not None:
            if verdict.seconds:
                await asyncio.sleep(verdict.seconds)
            record.replayed = True
            again = {"Idempotent-Replayed": "true", "Original-Request": saved.request_id}
            return Answer(saved.status, saved.body, again, ran=True)
        rule = verdict.rule
        if rule is not None and rule.action == "late":
            await self._postpone(call, rule)
        try:
            if verdict.seconds:
                await asyncio.sleep(verdict.seconds)
            answer = calls.execute(world, call, params, fault=record.fault)
        finally:
            world.keys.drop(call.owner, key)  # only if it is still in use: after a crash or a cancellation
        answer.headers["Original-Request"] = record.id
        return answer

    async def _postpone(self, call: calls.Request, rule: faults.Rule) -> None:
        world = self.core.world
        args = {
            "path": call.path,
            "owner": call.owner,
            "form": call.form,
            "key": call.key,
            "request_id": call.request_id,
        }
        with world.transaction(call.request_id, call.key):
            world.later(world.now() + rule.seconds, "late_effect", args)
        await asyncio.sleep(rule.hold)
        raise Dropped

    async def _spoil(self, request: web.BaseRequest, record: RequestRecord, rule: faults.Rule) -> None:
        """The faults that keep the call from running at all."""
        shown = _shown(_api_key(request) or "")
        if rule.action == "drop_before":
            await asyncio.sleep(rule.hold)
            raise Dropped
        if rule.action == "unavailable":
            raise errors.unavailable(rule.status)
        if rule.action == "rate_limited":
            raise errors.too_many_requests(rule.reason)
        if rule.action == "lock_timeout":
            raise errors.lock_timeout()
        if rule.action == "unauthorized":
            raise errors.unauthorized(shown)
        if rule.action == "forbidden":
            raise errors.no_access(record.account, shown)
        if rule.action == "conflict":
            raise errors.key_in_use(record.key or "")

    def _owner(self, request: web.BaseRequest) -> str:
        """The account that the call is made as. Its key may say anything after the right prefix."""
        key = _api_key(request)
        if not key:
            raise errors.unauthorized(None)
        if key in self.core.revoked_keys:
            raise errors.expired_key(_shown(key))
        if not key.startswith(KEY_PREFIXES):
            raise errors.unauthorized(_shown(key))
        world = self.core.world
        account = request.headers.get("Stripe-Account")
        if account is None or account == world.platform:
            return world.platform
        flags = world.store.get(world.platform, "_flags", f"flags/{account}")
        if world.account(account) is None or (flags is not None and flags["revoked"]):
            raise errors.no_access(account, _shown(key))
        return account

    def _require_mode(self, request: web.BaseRequest, ids: list[str]) -> None:
        """The other mode's key does not see this mode's objects."""
        live = "_live_" in (_api_key(request) or "")[:8]
        if live == self.core.world.livemode:
            return
        for id_ in ids:
            home = self.core.world.store.homes.get(id_)
            if home is not None:
                here, used = ("test", "live") if live else ("live", "test")
                raise errors.other_mode(home[1].replace("_", " "), id_, here=here, used=used)

    def _send(
        self, request: web.BaseRequest, record: RequestRecord, answer: Answer, rule: faults.Rule | None
    ) -> web.StreamResponse:
        action = rule.action if rule is not None else None
        record.status = answer.status
        headers = answer.headers
        headers["Request-Id"] = record.id
        headers["Stripe-Version"] = request.headers.get("Stripe-Version", self.core.world.settings.api_version)
        headers["Content-Type"] = "application/json"
        if record.key is not None:
            headers["Idempotency-Key"] = record.key
        if answer.ran:
            headers["Stripe-Should-Retry"] = "false"
        body = answer.body.encode()
        html = rule is not None and rule.html and action == "unavailable"
        if html or (action == "unreadable" and answer.status == HTTP_OK):
            text = f"<html><body>{answer.status}</body></html>"
            return web.Response(status=answer.status, text=text, content_type="text/html")
        if action == "not_utf8" and answer.status == HTTP_OK:
            body = body[:-1] + b'\xff\xfe"}'
        if action == "truncated" and request.transport is not None:
            return self._truncate(request, answer.status, headers, body)
        return web.Response(status=answer.status, body=body, headers=headers)

    def _truncate(
        self, request: web.BaseRequest, status: int, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        assert request.transport is not None
        lines = [f"HTTP/1.1 {status} OK", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
        request.transport.write(head + body[: len(body) // 2])
        request.transport.close()
        return web.Response()

    def _drop(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


def _api_key(request: web.BaseRequest) -> str | None:
    """From a bearer token, or from the user name of basic authentication as `curl -u` sends it."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(key).decode().partition(":")[0]
    return key.strip() if scheme.lower() == "bearer" else None


def _shown(key: str) -> str:
    """A key as Stripe's messages show it: its kind and its last four characters."""
    prefix = "_".join(key.split("_")[:2])
    return f"{prefix}_{'*' * 12}{key[-4:]}" if key.startswith(KEY_PREFIXES) else f"{'*' * 12}{key[-4:]}"


def require_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(f"the simulator listens on loopback addresses only, such as 127.0.0.1: not on {host!r}")
