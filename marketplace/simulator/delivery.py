"""Sends events to webhook endpoints in the background, with Stripe's vices when asked for."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp

from . import events
from .shapes import Obj
from .world import World

RETRY_GAPS = (10, 60, 300, 1800, 7200, 18_000, 36_000, 43_200, 43_200, 43_200, 43_200)
"""Seconds of the simulator's clock: first retries soon, about three days in all."""
IN_FLIGHT_MAX = 16
SENT_MAX = 10_000
TIMEOUT_SECONDS = 10


@dataclass(kw_only=True)
class WebhookFaults:
    """Chances from 0 to 1, drawn from the seed."""

    duplicates: float = 0.0
    reordered: float = 0.0
    dropped: float = 0.0
    delay_seconds: float = 0.0
    reorder_seconds: float = 2.0
    """A reordered event is held back for up to this long."""

    def __post_init__(self) -> None:
        for name in ("duplicates", "reordered", "dropped"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where events go. `connect` None means events of the platform and of connected accounts alike."""

    id: str
    url: str
    secrets: tuple[str, ...]
    enabled_events: tuple[str, ...] = ("*",)
    connect: bool | None = None
    api_version: str | None = None

    def wants(self, event: Obj) -> bool:
        if self.connect is not None and self.connect != (event["account"] is not None):
            return False
        return "*" in self.enabled_events or event["type"] in self.enabled_events


@dataclass(slots=True)
class Sent:
    """One delivery, for looking at afterwards."""

    event: str
    type: str
    url: str
    attempt: int
    status: int | None = None


class Delivery:
    def __init__(
        self, *, seed: int | str, urls: tuple[str, ...], secrets: tuple[str, ...], faults: WebhookFaults
    ) -> None:
        self.urls, self.secrets, self.faults = urls, secrets, faults
        self.sent: deque[Sent] = deque(maxlen=SENT_MAX)
        self.quiet = threading.Condition()
        self.running = 0
        self._random = random.Random(f"webhooks {seed}")  # noqa: S311
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None
        self._slots: asyncio.Semaphore | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def targets(self, world: World) -> Iterator[Target]:
        for number, url in enumerate(self.urls, 1):
            yield Target(id=f"flag_{number}", url=url, secrets=self.secrets)
        for endpoint in world.store.table(world.platform, "webhook_endpoint").rows.values():
            hidden = world.store.get(world.platform, "_endpoint_secret", f"secret/{endpoint['id']}")
            if endpoint["status"] == "enabled" and hidden is not None:
                yield Target(
                    id=endpoint["id"],
                    url=endpoint["url"],
                    secrets=tuple(hidden["secrets"]),
                    enabled_events=tuple(endpoint["enabled_events"]),
                    connect=hidden["connect"],
                    api_version=endpoint["api_version"],
                )

    def announce(self, world: World, owner: str, event: Obj) -> int:
        """Plan the first sending to each endpoint that wants it; how many those are."""
        pending = 0
        for target in self.targets(world):
            if not target.wants(event):
                continue
            pending += 1
            chance, faults = self._random, self.faults
            if faults.dropped and chance.random() < faults.dropped:
                continue
            copies = 2 if faults.duplicates and chance.random() < faults.duplicates else 1
            for copy in range(copies):
                wait = faults.delay_seconds
                if faults.reordered and chance.random() < faults.reordered:
                    wait += chance.random() * faults.reorder_seconds
                attempt = 0 if copy == 0 else -1  # a duplicate is sent once and decides nothing
                self._plan(world, owner, event["id"], target.id, wait=wait, attempt=attempt)
        return pending

    def _plan(self, world: World, owner: str, event: str, target: str, *, wait: float, attempt: int) -> None:
        args = {"owner": owner, "event": event, "target": target, "attempt": attempt}
        world.later(world.now() + wait, "deliver", args)

    def resend(self, world: World, owner: str, event: Obj) -> int:
        """As from the dashboard: at once, and without stopping the automatic retries."""
        count = 0
        for target in self.targets(world):
            if target.wants(event):
                self._plan(world, owner, event["id"], target.id, wait=0, attempt=-1)
                count += 1
        return count

    # The job "deliver"

    def deliver(self, world: World, *, owner: str, event: str, target: str, attempt: int) -> None:
        row = world.store.get(owner, "event", event)
        found = next((each for each in self.targets(world) if each.id == target), None)
        if row is None or found is None or self._loop is None or self._loop.is_closed():
            return
        with self.quiet:
            self.running += 1
        self._loop.call_soon_threadsafe(self._start, world, owner, row, found, attempt)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)

    def _start(self, world: World, owner: str, event: Obj, target: Target, attempt: int) -> None:
        if self._closed or self._loop is None:
            return
        task = self._loop.create_task(self._send(world, owner, event, target, attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, world: World, owner: str, event: Obj, target: Target, attempt: int) -> None:
        assert self._slots is not None
        try:
            async with self._slots:
                if self._session is None:
                    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
                    self._session = aiohttp.ClientSession(timeout=timeout)
                status = await self._post(world, event, target)
            self.sent.append(Sent(event["id"], event["type"], target.url, attempt, status))
            self._settle(world, owner, event, target, attempt, ok=status is not None and 200 <= status < 300)
        finally:
            with self.quiet:
                self.running -= 1
                self.quiet.notify_all()

    async def _post(self, world: World, event: Obj, target: Target) -> int | None:
        """Signed anew each time. A redirect is an answer other than 2xx, so a failure."""
        body = events.render(world, event, api_version=target.api_version).encode()
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": events.signature(body, target.secrets, at=world.now()),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        assert self._session is not None
        try:
            async with self._session.post(target.url, data=body, headers=headers, allow_redirects=False) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    def _settle(self, world: World, owner: str, event: Obj, target: Target, attempt: int, *, ok: bool) -> None:
        if attempt < 0:
            return
        with world.transaction():
            if ok:
                event["pending"] = max(0, event["pending"] - 1)
                world.store.changed(owner, "event", event)
            elif attempt < len(RETRY_GAPS):
                gap = RETRY_GAPS[attempt]
                self._plan(world, owner, event["id"], target.id, wait=gap, attempt=attempt + 1)

    def wait(self, world: World, timeout: float) -> bool:
        """Until nothing is being sent and nothing is due; whether that came in time."""
        end = time.monotonic() + timeout
        with self.quiet:
            while self._busy(world):
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self.quiet.wait(min(left, 0.05))
        return True

    def _busy(self, world: World) -> bool:
        if self.running:
            return True
        now = world.now()
        return any(job.kind == "deliver" and job.at <= now for job in list(world.jobs.values()))

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None
