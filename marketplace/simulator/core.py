"""The parts of one simulator put together: world, faults, limits, log, deliveries, journal."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import calls, disputes, funds, ledger, refunds, reversals
from .clock import Clock
from .delivery import Delivery, WebhookFaults
from .faults import Plan, RateLimit
from .journal import Journal
from .request_log import RequestLog
from .world import Settings, World

DEFAULT_SECRET = "whsec_simulator"  # noqa: S105


@dataclass(kw_only=True)
class Options:
    """What a simulator starts with, and comes back to at a reset."""

    seed: int | str = field(default_factory=lambda: secrets.randbelow(2**32))
    settings: Settings = field(default_factory=Settings)
    faults: list[dict[str, Any]] = field(default_factory=list)
    """Keyword arguments for `Plan.add`."""
    rate_limit: int | None = None
    global_rate_limit: int | None = None
    webhook_urls: tuple[str, ...] = ()
    webhook_secrets: tuple[str, ...] = (DEFAULT_SECRET,)
    webhook_faults: WebhookFaults = field(default_factory=WebhookFaults)
    frozen_at: float | None = None
    state_file: Path | None = None


def _succeed_refund(world: World, owner: str, refund: str) -> None:
    refunds.succeed(world, owner, refund)


def _fail_refund(world: World, owner: str, refund: str) -> None:
    refunds.fail(world, owner, refund)


def _dispute_charge(world: World, owner: str, charge: str) -> None:
    disputes.open_by_card(world, owner, charge)


def _give_up(world: World, owner: str, reversal: str) -> None:
    reversals.stop_waiting(world, owner, reversal)


class Core:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.log = RequestLog()
        self.on_wake: Callable[[], None] = lambda: None
        self.on_reset: Callable[[], None] = lambda: None
        self.journal = Journal(options.state_file) if options.state_file is not None else None
        self.retired: list[Delivery] = []
        self._build()
        if self.journal is not None:
            self.journal.open(self.world)
            self.world.write = self.journal.write

    def _build(self) -> None:
        options = self.options
        self.clock = Clock(options.frozen_at)
        self.faults = Plan(options.seed)
        self.faults.now = self.clock.now
        for each in options.faults:
            self.faults.add(**each)
        self.endpoint_limit = RateLimit(options.rate_limit)
        self.global_limit = RateLimit(options.global_rate_limit)
        self.revoked_keys: set[str] = set()
        self.delivery = Delivery(
            seed=options.seed,
            urls=options.webhook_urls,
            secrets=options.webhook_secrets,
            faults=dataclasses.replace(options.webhook_faults),
        )
        self.world = self._world()

    def _world(self) -> World:
        actions: dict[str, Callable[..., None]] = {
            "settle": ledger.settle,
            "succeed_refund": _succeed_refund,
            "fail_refund": _fail_refund,
            "dispute_charge": _dispute_charge,
            "give_up_reversal": _give_up,
            "late_effect": calls.execute_late,
            "deliver": self.delivery.deliver,
        }
        world = World(
            dataclasses.replace(self.options.settings),
            seed=self.options.seed,
            clock=self.clock,
            actions=actions,
            on_funds=funds.arrived,
            recording=self.journal is not None,
        )
        delivery = self.delivery
        world.announce = lambda owner, event: delivery.announce(world, owner, event)
        world.wake = self._wake
        return world

    def _wake(self) -> None:
        self.on_wake()

    def reset(self) -> None:
        """Back to an empty Stripe with the options it was started with."""
        with self.world.lock:
            self.retired.append(self.delivery)
            self._build()
            self.log.clear()
            if self.journal is not None:
                self.journal.erase(self.world)
                self.world.write = self.journal.write
        self.on_reset()

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()
