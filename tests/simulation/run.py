"""Running seeds: the rig that many lives share, and one life on it."""

import contextlib
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import structlog
from django.db import connection, connections
from django.test.utils import override_settings

from marketplace.gateway import stripe_api
from marketplace.services import bulk_retries, bulk_steps
from marketplace.simulator import StripeSimulator
from tests.simulation import clocks, hosts, reconciled
from tests.simulation.audit import Facts, audit
from tests.simulation.life import Life, Stuck
from tests.simulation.profiles import Profile, profile
from tests.simulation.scene import Scene
from tests.simulation.scheduler import Scheduler, connect, current
from tests.simulation.wire import Wire, through

# Lines of the program's log that tell of a bug, whatever the rows say.
NEVER = {"unexpected_error", "could_not_settle", "webhook_event_failed", "refund_needs_a_person"}
COUNTED = {
    "breaker_opened": "breakers opened",
    "database_away": "database away",
    "debt_netted": "debts netted",
    "late_settle": "late settles",
    "rate_limited": "slowed down by a 429",
    "refund_settled_by_another": "refunds settled by another",
    "reversal_needs_a_person": "reversals that needed a person",
    "transfer_already_reversed": "reversals of others adopted",
    "transfer_needs_a_person": "transfers that needed a person",
}
# Lives.
VACUUM_EVERY = 20


@dataclass
class Report:
    seed: int
    profile: Profile
    breaches: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    # Seconds since the beginning, who, what.
    trace: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.breaches


class Rig:
    """A Stripe, a crew of threads and a database of its own: one life after the other is led on it."""

    def __init__(self, simulator: Any) -> None:
        self.simulator = simulator
        self.clock = clocks.Clock(simulator)
        self.scheduler = Scheduler(self.clock)
        self.wire = Wire(simulator, self.scheduler)
        self.gateway = stripe_api.connect(gate=hosts.Gate())
        self.life: Life | None = None
        self._lives = 0
        self._clear, self._vacuum = _statements()

    def live(self, seed: int, *, on_line: Callable[[float, str, str], None] | None = None) -> Report:
        """One seed, from an empty world to the audit."""
        scheduler, wire = self.scheduler, self.wire
        chosen = profile(seed)
        self.clear()
        self.simulator.core.options.seed = seed
        self.simulator.reset()
        self.clock.start()
        scheduler.start(seed, chosen.chances)
        scheduler.on_line = on_line
        wire.start(chosen.weather)
        report = Report(seed, chosen, trace=scheduler.trace)
        with self._environment(seed), override_settings(**chosen.settings):
            scene = Scene(self.simulator, scheduler, wire, self.gateway, chosen, random.Random(f"life {seed}"))
            self.life = Life(scene)
            try:
                self.life.run()
            except Stuck as stuck:
                report.breaches.append(f"8: stuck {stuck}")
            finally:
                scheduler.abandon()
        report.breaches[:0] = scheduler.breaches
        if not any("stuck" in each for each in report.breaches):
            report.breaches += self.audited()
            if seed % reconciled.ONE_IN == 0:
                by_hand = self.life.people.reversed_by_hand
                gateway = stripe_api.connect()
                report.breaches += reconciled.breaches(gateway, scheduler.counts, reversed_by_hand=by_hand)
        report.counts = scheduler.counts + wire.counts
        report.counts["requests"] = len(wire.asked)
        report.counts["steps"] = len(scheduler.trace)
        return report

    def audited(self) -> list[str]:
        """What is wrong after the last life."""
        assert self.life is not None
        scene = self.life.scene
        return audit(
            Facts(
                simulator=self.simulator,
                orders=scene.world.orders,
                reversed_by_hand=self.life.people.reversed_by_hand,
                entered=self.life.people.entered,
                clawback_on=scene.profile.settings["DISPUTE_CLAWBACK_ON"],
                asked=self.wire.asked,
                outages=self.wire.outages,
                capabilities_changed=scene.counts["capabilities changed"],
                breakers_opened=scene.counts["breakers opened"],
                funds_patience=scene.profile.settings["REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE"].total_seconds(),
                is_fair_weather=not scene.profile.weather.trouble,
                elapsed=self.clock.elapsed,
            )
        )

    def clear(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(self._clear)
            self._lives += 1
            if self._lives % VACUUM_EVERY == 0:
                # What lives leave behind would make the next ones slower and slower.
                cursor.execute(self._vacuum)

    # --- What a host tells its programs -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _environment(self, seed: int) -> Iterator[None]:
        told = clocks.hosts(
            monotonic=self._monotonic,
            since_boot=lambda: self.clock.elapsed,
            wall=self._wall,
            sleep=self._sleep,
            seed=seed,
        )
        # A transfer may wait for hours: its bulk retry would be looked at thousands of times, and nothing be seen.
        seldom = patch.object(bulk_steps, "LOOK_INTERVAL", timedelta(hours=1))
        # The database's own defaults, such as the time of a plan, are not of our clock.
        lasting = patch.object(bulk_retries, "PLAN_LASTS", timedelta(days=36_500))
        with told, seldom, lasting, hosts.waiting_by(self.scheduler), _listening(self.scheduler):
            yield

    def _monotonic(self) -> float:
        task = current()
        return self.clock.elapsed - (task.host.suspended if task is not None else 0.0)

    def _wall(self) -> float:
        task = current()
        return self.clock.now + (task.host.skew if task is not None else 0.0)

    def _sleep(self, seconds: float) -> None:
        if current() is not None:
            self.scheduler.sleep(seconds)


def _statements() -> tuple[str, str]:
    """Two that make the world empty, and its tables small, again."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
            AND (relname LIKE 'marketplace\\_%' OR relname = 'auth_user') ORDER BY 1
            """
        )
        tables = [row[0] for row in cursor.fetchall()]
    deletes = "; ".join(f"DELETE FROM {table}" for table in tables)  # noqa: S608 - our own tables
    # Far quicker than TRUNCATE while tables are small. A replica asks no trigger, and these forbid it.
    clear = f"""
        SET session_replication_role = replica; {deletes}; SET session_replication_role = origin;
        SELECT setval(seqrelid, seqstart, false) FROM pg_sequence JOIN pg_class ON pg_class.oid = seqrelid
        WHERE relnamespace = 'simclock'::regnamespace OR relname LIKE 'marketplace\\_%' OR relname = 'auth_user_id_seq'
    """  # noqa: S608 - our own tables
    return clear, f"VACUUM {', '.join(tables)}"


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """Everything in its place; and everybody else's place as it was, afterwards."""
    name = connections["default"].settings_dict["NAME"]
    if not name.startswith("test_"):
        raise RuntimeError(f"a simulation empties its database, and {name!r} does not look like one of tests")
    with ExitStack() as stack:
        simulator = stack.enter_context(StripeSimulator())
        stack.enter_context(override_settings(STRIPE_API_BASE=simulator.url))
        clocks.install()
        before = connections["default"]
        connect(None)
        try:
            made = Rig(simulator)
            stack.enter_context(through(made.wire))
            try:
                yield made
            finally:
                made.scheduler.close()
                made.clear()
        finally:
            connection.close()
            connections["default"] = before
            clocks.remove()


@contextlib.contextmanager
def _listening(scheduler: Scheduler) -> Iterator[None]:
    """What the program logs is counted, and some of it must never be said."""

    def heard(_logger: Any, _method: str, line: Any) -> Any:
        event = str(line["event"])
        if event in COUNTED:
            scheduler.counts[COUNTED[event]] += 1
        if event in NEVER:
            scheduler.breaches.append(f"the program says {event}: {_error(line)}")
        if event == "lease_ended_by_event":
            scheduler.told_by_events.add(f"seller transfer {line['transfer']}")
        if event == "late_settle":
            _was_late(scheduler, line["error"])
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[heard])
    try:
        yield
    finally:
        structlog.configure(processors=before)


def _was_late(scheduler: Scheduler, error: str) -> None:
    """A lease is lost by a process that stood still, or was told that what was done had failed. Never by one that only
    waited for Stripe. A refund can be settled by its webhook meanwhile, and a reversal by its own.
    """
    task = current()
    assert task is not None
    scheduler.note(f"late settle: {error}")
    if any(error.endswith(f"the lease on {whose} is no longer ours") for whose in scheduler.told_by_events):
        return
    if not (task.host.stalled or task.host.suspended or task.lost_a_commit or task.name.startswith("refund")):
        scheduler.breaches.append(f"6: {task.host.name} never stood still, and lost its lease: {error}")


def _error(line: Any) -> str:
    told = line.get("exc_info")
    error = told if isinstance(told, BaseException) else sys.exc_info()[1]
    if error is None:
        return str(line)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (in {where.name})"
