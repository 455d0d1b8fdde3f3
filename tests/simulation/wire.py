"""The way to Stripe and back: slow, lossy, and now and then with a Stripe at its end that fails."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import urllib3
from django.conf import settings
from django.db import connection

from marketplace.gateway import http_client
from tests.simulation.scheduler import Crash, Scheduler, current, is_in_transaction

Send = Callable[[], Any]
# Faults that say nothing of the row: Stripe asks to come again, and nothing may be spent.
HARMLESS = {"conflict", "lock_timeout", "rate_limited", "unauthorized", "forbidden"}
POST_ONLY = {"late", "error_500", "error_500_after", "conflict", "lock_timeout"}
ALL_FAULTS = (
    "drop_before",
    "drop_after",
    "late",
    "arrives_late",
    "error_500",
    "error_500_after",
    "unavailable",
    "conflict",
    "lock_timeout",
    "rate_limited",
    "unreadable",
    "not_utf8",
    "truncated",
    "unauthorized",
    "forbidden",
)


@dataclass
class Weather:
    """What a seed makes of the network and of Stripe."""

    # Chance that a call meets one of ``faults``.
    trouble: float = 0.15
    faults: tuple[str, ...] = ALL_FAULTS
    # Chance that a call takes seconds instead of a fraction of one.
    slow: float = 0.1
    # Calls about this seller's account all fail with it.
    sick_account: str = ""
    # Longest that an effect may come after the caller has given up, in seconds.
    latest_effect: float = 900.0


@dataclass
class Asked:
    """One request, as the network saw it."""

    at: float
    method: str
    path: str
    subject: str
    status: int | None = None
    trouble: str = ""
    is_outage: bool = False


@dataclass(eq=False)
class Late:
    """A request whose caller has gone, still on its way."""

    arrives_at: float
    send: Send
    what: str


class Wire:
    def __init__(self, simulator: Any, scheduler: Scheduler) -> None:
        self.simulator = simulator
        self.scheduler = scheduler
        self.start(Weather())

    def start(self, weather: Weather) -> None:
        self.weather = weather
        self.asked: list[Asked] = []
        self.late: list[Late] = []
        self.outage_until = 0.0
        self.outages = 0
        self.is_quiet = False
        # So many of the next calls that change something come late, whatever the weather.
        self.late_calls = 0
        self.counts: Counter[str] = Counter()

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last call that was to change something has an outcome that the caller does not know."""
        last = next((each for each in reversed(self.asked) if each.method == "POST"), None)
        return last is not None and bool(last.trouble) and last.trouble not in HARMLESS

    # --- By the controller --------------------------------------------------------------------------------------------

    def begin_outage(self, seconds: float) -> None:
        self.outages += 1
        self.outage_until = self.scheduler.clock.now + seconds
        self.scheduler.note(f"outage of {seconds:.0f} s")

    def next_arrival(self) -> float | None:
        return min((each.arrives_at for each in self.late), default=None)

    def deliver_late(self) -> None:
        """What was on its way arrives at Stripe; nobody waits for the answer."""
        due = [each for each in self.late if each.arrives_at <= self.scheduler.clock.now]
        for each in sorted(due, key=lambda each: each.arrives_at):
            self.late.remove(each)
            answer = each.send()
            self.counts["requests that arrived after their caller had gone"] += 1
            self.scheduler.note(f"late: {each.what} arrives: {answer.status}")

    # --- By the tasks -------------------------------------------------------------------------------------------------

    def request(self, send: Send, send_late: Send, method: str, url: str, body: Any) -> Any:
        """One request and its answer. The bytes go out in ``depart``, which ``send`` comes to: up to there the program
        may still think better of it. ``send_late`` sends them without asking anybody.
        """
        task, scheduler = current(), self.scheduler
        if task is None or task.is_calm:
            return send()
        self._require_no_transaction(url)
        what = f"{method.upper()} {urlsplit(url).path}"
        scheduler.point(f"→ {what}")
        asked = Asked(0.0, method.upper(), urlsplit(url).path, subject_of(url, body))
        try:
            answer = self._sent(send, lambda: self._depart(asked, send_late))
        except urllib3.exceptions.HTTPError:
            scheduler.note(f"{what} has no answer ({asked.trouble})")
            # At once where the connection broke, or after all of the timeout.
            if asked.trouble != "arrives_late" and scheduler.random.random() < 0.5 and not self.is_quiet:
                scheduler.sleep(settings.STRIPE_READ_TIMEOUT.total_seconds())
            scheduler.point(f"← {what}")
            raise
        asked.status = answer.status
        scheduler.note(f"{what} is {answer.status}" + (f" ({asked.trouble})" if asked.trouble else ""))
        if not self.is_quiet:
            scheduler.sleep(self._seconds())
        scheduler.point(f"← {what}")
        return answer

    def _sent(self, send: Send, departure: Callable[[], None]) -> Any:
        task = current()
        assert task is not None
        task.departure = departure
        try:
            return send()
        finally:
            # Before anybody else goes on: what Stripe is to do to this request, it does to no other.
            task.departure = None
            self.simulator.faults.clear()

    def _depart(self, asked: Asked, send_late: Send) -> None:
        """Until it is at Stripe, and what Stripe is asked to do to it is known there: nobody goes on in between."""
        task = current()
        assert task is not None
        asked.at = self.scheduler.clock.now
        self.asked.append(asked)
        task.requests.append((asked.method, asked.path))
        fault = asked.trouble = self._fault(asked)
        if fault:
            self.counts[f"fault: {fault}"] += 1
        self._travel(send_late, asked, fault)
        if fault:
            self.simulator.faults.add(**self._rule(fault))

    def _require_no_transaction(self, url: str) -> None:
        if connection.in_atomic_block or is_in_transaction():
            self.scheduler.breaches.append(f"7: a transaction is open while Stripe is called ({url})")

    def _fault(self, asked: Asked) -> str:
        scheduler, weather = self.scheduler, self.weather
        if self.is_quiet:
            return ""
        if scheduler.clock.now < self.outage_until:
            asked.is_outage = True
            return "outage"
        if weather.sick_account and self._concerns(asked, weather.sick_account):
            return "unavailable" if asked.method == "GET" else "error_500"
        if self.late_calls and asked.method == "POST":
            self.late_calls -= 1
            return scheduler.random.choice(["late", "arrives_late"])
        if scheduler.random.random() >= weather.trouble:
            return ""
        fault = scheduler.random.choice(weather.faults)
        return "drop_before" if asked.method == "GET" and fault in POST_ONLY else fault

    def _concerns(self, asked: Asked, account: str) -> bool:
        found = self.simulator.get(asked.subject) if asked.subject.startswith("tr_") else None
        return found is not None and found["destination"] == account

    def _seconds(self) -> float:
        luck = self.scheduler.random.random()
        if luck < self.weather.slow:
            return self.scheduler.random.uniform(1, settings.STRIPE_READ_TIMEOUT.total_seconds() / 2)
        return self.scheduler.random.uniform(0.02, 0.4) if luck < 0.6 else 0.0

    def _travel(self, send: Send, asked: Asked, fault: str) -> None:
        """The way to Stripe. Who dies meanwhile has sent it all the same; who waits too long hears nothing."""
        if self.is_quiet:
            return
        scheduler = self.scheduler
        what = f"{asked.method} {asked.path}"
        if fault == "arrives_late":
            patience = settings.STRIPE_READ_TIMEOUT.total_seconds()
            arrives_at = scheduler.clock.now + patience + scheduler.random.random() * self.weather.latest_effect
            self.late.append(Late(arrives_at, send, what))
            scheduler.sleep(patience)
            raise urllib3.exceptions.TimeoutError("simulated: no answer in time")
        seconds = self._seconds() / 2
        if not seconds:
            return
        try:
            scheduler.sleep(seconds)
        except Crash:
            if scheduler.random.random() < 0.7:
                arrives_at = scheduler.clock.now + scheduler.random.random() * self.weather.latest_effect
                self.late.append(Late(arrives_at, send, what))
            raise

    def _rule(self, fault: str) -> dict[str, Any]:
        chance = self.scheduler.random
        match fault:
            case "outage":
                return chance.choice([{"action": "unavailable", "status": 503}, {"action": "drop_before"}])
            case "unavailable":
                return {
                    "action": fault,
                    "status": chance.choice([502, 503, 504, 424]),
                    "html": chance.random() < 0.3,
                }
            case "rate_limited":
                reasons = ["global-rate", "endpoint-rate", "endpoint-concurrency", "resource-specific"]
                return {"action": fault, "reason": chance.choice(reasons)}
            case "late":
                return {"action": fault, "seconds": chance.random() * self.weather.latest_effect}
            case _:
                return {"action": fault}


def subject_of(url: str, body: Any) -> str:
    """What a request is about: a transfer's id, an operation, a group, a payment."""
    parts = urlsplit(url).path.strip("/").split("/")
    if len(parts) > 2:
        return parts[2]
    form = parse_qs(body if isinstance(body, str) else urlsplit(url).query)
    for name in ("metadata[operation_id]", "transfer_group", "payment_intent"):
        if name in form:
            return form[name][0]
    return parts[-1]


@contextmanager
def through(wire: Wire) -> Iterator[None]:
    """All requests of the gateway go this way."""
    ask, send = http_client.GatedClient._send, urllib3.connection.HTTPConnection.request
    plain = urllib3.PoolManager(retries=False)

    def request(client: Any, method: str, url: str, **options: Any) -> Any:
        return wire.request(
            lambda: ask(client, method, url, **options),
            lambda: plain.request(method, url, **options),
            method,
            url,
            options.get("body"),
        )

    def depart(connection: Any, *args: Any, **options: Any) -> None:
        task = current()
        if task is not None and task.departure is not None:
            task.departure()
        send(connection, *args, **options)

    with (
        patch.object(http_client.GatedClient, "_send", request),
        patch.object(urllib3.connection.HTTPConnection, "request", depart),
    ):
        try:
            yield
        finally:
            plain.clear()
