"""The state of one simulated Stripe: objects, balances, time, and what is still to happen."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from . import shapes
from .clock import Clock
from .idempotency import Keys
from .shapes import Obj
from .store import Store

DEFAULT_API_VERSION = "2026-10-28.endive"
PLATFORM = "acct_platform"
CURRENCY_OF_COUNTRY = {
    "US": "usd", "GB": "gbp", "CH": "chf", "CA": "cad", "AU": "aud", "JP": "jpy", "SE": "sek", "DK": "dkk",
    "NO": "nok", "PL": "pln", "CZ": "czk", "HU": "huf", "RO": "ron", "NZ": "nzd", "BR": "brl", "MX": "mxn",
}  # fmt: skip


@dataclass(kw_only=True)
class Settings:
    """How this Stripe behaves. All can be changed while it runs."""

    charge_settles_after: float = 0
    """Seconds of the simulator's clock until a charge's money is available."""
    refund_status: str = "succeeded"
    """What a new refund says: `succeeded`, `pending` or `failed` (at first pending, then failed)."""
    refund_settles_after: float | None = None
    """Seconds until a pending refund succeeds (or fails); None: when told to."""
    allow_negative_balances: bool = False
    pending_reversals: bool = False
    """Stripe's private preview: reversals carry a status, and wait when the seller lacks funds."""
    keys_kept_seconds: float = 24 * 3600
    api_version: str = DEFAULT_API_VERSION
    livemode: bool = False
    country: str = "DE"


class Transaction:
    """One indivisible change. The outermost writes it to the journal, keys and effects in one line."""

    def __init__(self, world: World, request_id: str | None, key: str | None) -> None:
        self.world = world
        self.cause = (request_id, key)
        self.before: tuple[str | None, str | None] = (None, None)

    def __enter__(self) -> World:
        world = self.world
        world.lock.acquire()
        world.depth += 1
        self.before, world.cause = world.cause, self.cause
        return world

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        world = self.world
        world.cause = self.before
        world.depth -= 1
        try:
            if world.depth == 0:
                world.commit()
        finally:
            world.lock.release()


@dataclass(slots=True)
class Job:
    """Something due later. Named, with plain arguments, so that the journal can keep it."""

    id: str
    at: float
    kind: str
    args: dict[str, Any] = field(default_factory=dict)


class World:
    def __init__(
        self,
        settings: Settings,
        *,
        seed: int | str,
        clock: Clock,
        actions: dict[str, Callable[..., None]],
        on_funds: Callable[[World, str, str, bool], None],
        recording: bool = False,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.clock = clock
        self.actions = actions
        self.on_funds = on_funds
        self.lock = threading.RLock()
        self.depth = 0
        self.cause: tuple[str | None, str | None] = (None, None)
        self.store = Store(recording=recording)
        self.balances: dict[tuple[str, str], Obj] = {}
        self.waiting: dict[tuple[str, str], list[str]] = {}
        """Refunds that wait for money, by account and currency, oldest first."""
        self.made_by: dict[str, str] = {}
        """The idempotency key that each reversal was made with: for the audit, Stripe's object does not
        say.
        """
        self.keys = Keys(self)
        self.jobs: dict[str, Job] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._scheduled = 0
        self.made = 0
        chance = random.Random(f"ids {seed}")  # noqa: S311
        self._stem = "".join(chance.choices("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjkmnp", k=8))
        self.announce: Callable[[str, Obj], int] = lambda _owner, _event: 0
        self.wake: Callable[[], None] = lambda: None
        self.write: Callable[[World], None] | None = None
        self.platform = PLATFORM
        self._add_platform()

    def _add_platform(self) -> None:
        made = shapes.make(
            "account",
            id=self.platform,
            country=self.settings.country,
            created=int(self.clock.now()),
            default_currency=CURRENCY_OF_COUNTRY.get(self.settings.country, "eur"),
            email="platform@example.com",
        )
        self.store.put(self.platform, "_platform", made)

    # Time

    def now(self) -> float:
        return self.clock.now()

    @property
    def livemode(self) -> bool:
        return self.settings.livemode

    def transaction(self, request_id: str | None = None, key: str | None = None) -> Transaction:
        return Transaction(self, request_id, key)

    def later(self, at: float, kind: str, args: dict[str, Any]) -> Job:
        job = Job(id=self.new_id("_job"), at=at, kind=kind, args=args)
        self.schedule(job)
        if self.store.recording:
            self.store.dirty["", "_job", job.id] = asdict(job)
        return job

    def schedule(self, job: Job) -> None:
        self.jobs[job.id] = job
        self._scheduled += 1
        heapq.heappush(self._heap, (job.at, self._scheduled, job.id))
        if self._heap[0][2] == job.id:
            self.wake()

    def forget(self, job_id: str) -> None:
        if self.jobs.pop(job_id, None) is not None and self.store.recording:
            self.store.dirty["", "_job", job_id] = None

    def next_due(self) -> float | None:
        while self._heap and self._heap[0][2] not in self.jobs:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run_due(self, until: float | None = None) -> None:
        """Do what is due, in order. With `until`, the clock moves from job to job and ends there."""
        with self.transaction():
            while (due := self.next_due()) is not None and due <= (self.now() if until is None else until):
                job = self.jobs[heapq.heappop(self._heap)[2]]
                if until is not None and due > self.now():
                    self.clock.move_to(due)
                self.forget(job.id)
                self.actions[job.kind](self, **job.args)
            if until is not None:
                self.clock.move_to(until)
        self.wake()

    # Objects

    def new_id(self, prefix: str) -> str:
        """Distinct, the same for the same seed and order, and not in order to the eye."""
        self.made += 1
        return f"{prefix}_1{self._stem}{self.made * 0x9E3779B97F4B & 0xFFFFFFFFFFFF:012x}"

    def default_currency(self, owner: str) -> str:
        account = self.account(owner)
        currency: str = account["default_currency"] if account else "usd"
        return currency

    def account(self, id_: str) -> Obj | None:
        if id_ == self.platform:
            return self.store.get(id_, "_platform", id_)
        return self.store.get(self.platform, "account", id_)

    def may_go_negative(self, owner: str) -> bool:
        flags = self.store.get(self.platform, "_flags", f"flags/{owner}")
        if flags is None or flags["may_go_negative"] is None:
            return self.settings.allow_negative_balances
        return bool(flags["may_go_negative"])

    def funds_arrived(self, owner: str, currency: str, *, announce: bool = False) -> None:
        self.on_funds(self, owner, currency, announce)

    def commit(self) -> None:
        if self.write is not None:
            self.write(self)
