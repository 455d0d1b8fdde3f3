"""What the queues hold, asked of their tables in plain words."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django.db import connection
from psycopg import Cursor

PERMANENTLY_FAILED = "permanently failed"
BREAKER = "breaker"
CLOCK = "clock"


@dataclass
class Due:
    """How many rows may be claimed now, and when the next may, in seconds since 1970."""

    now: int = 0
    next_at: float | None = None


@dataclass
class Held:
    """What the tables say, until somebody writes again."""

    # The queue's name → the kind of work that a breaker may stop, and when each of its rows is free.
    queues: dict[str, tuple[str, list[float]]] = field(default_factory=dict)
    # Kind of work → when the next probe may go, while its breaker is open.
    probes: dict[str, float] = field(default_factory=dict)
    for_a_person: int = 0
    asked_at: float = 0.0

    def due(self, now: float) -> dict[str, Due]:
        """By the queue's name. While a breaker is open, its queue's rows wait for the next probe."""
        # Each statement moves the database's clock on a little, past the one that everybody looks at.
        now = max(round(now, 6), self.asked_at)
        found = {}
        for name, (work, free_at) in self.queues.items():
            claimable = sum(moment <= now for moment in free_at)
            found[name] = Due(claimable, min((moment for moment in free_at if moment > now), default=None))
            if claimable and self.probes.get(work, 0) > now:
                found[name] = Due(0, self.probes[work])
        return found


def ask(queues: Iterable[Any]) -> Held:
    conditions = {queue.name: queue.due for queue in queues}
    rows = Cursor(connection.connection).execute(_question(tuple(conditions.items())), prepare=True).fetchall()
    held = Held(queues={name: (due.work, []) for name, due in conditions.items()})
    for what, detail, number in rows:
        if what == CLOCK:
            held.asked_at = number
        elif what == PERMANENTLY_FAILED:
            held.for_a_person = int(number)
        elif what == BREAKER:
            held.probes[detail] = number
        else:
            held.queues[what][1].append(number)
    return held


@cache
def _question(queues: tuple[tuple[str, Any], ...]) -> str:
    parts = [
        f"""
        SELECT '{name}', '', extract(epoch FROM GREATEST(next_retry_at, lease_expires_at))::float8
        FROM {due.model._meta.db_table} WHERE {due.condition}
        """  # noqa: S608 - constants of the program
        for name, due in queues
    ]
    clock = f"SELECT '{CLOCK}', '', (last_value / 1e6)::float8 FROM simclock.micros"  # noqa: S608 - constants of this module
    probes = f"""
        SELECT '{BREAKER}', work, extract(epoch FROM next_probe_at)::float8
        FROM marketplace_circuitbreaker WHERE opened_at IS NOT NULL
    """  # noqa: S608 - constants of this module
    for_a_person = f"""
        SELECT '{PERMANENTLY_FAILED}', '', count(*)::float8
        FROM marketplace_sellertransfer WHERE status = 'permanently_failed'
    """  # noqa: S608 - constants of this module
    return " UNION ALL ".join([*parts, clock, probes, for_a_person])
