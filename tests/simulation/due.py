"""What the queues hold, asked of their tables in plain words."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.db import connection
from psycopg import Cursor

PERMANENTLY_FAILED = "permanently failed"
BREAKER = "breaker"


@dataclass
class Due:
    """How many rows may be claimed now, and when the next may, in seconds since 1970."""

    now: int = 0
    next_at: float | None = None


def ask(queues: Iterable[Any]) -> dict[str, Due]:
    """By the queue's name; and, under ``PERMANENTLY_FAILED``, how many transfers ask for a person."""
    conditions = {queue.name: queue.due for queue in queues}
    rows = Cursor(connection.connection).execute(_question(tuple(conditions.items())), prepare=True).fetchall()
    found = {name: Due(now, next_at) for name, _, now, next_at in rows if name != BREAKER}
    # While a breaker is open, its queue's rows wait for the next probe.
    for _, work, may_probe, probe_at in (row for row in rows if row[0] == BREAKER):
        for name, due in conditions.items():
            if due.work == work and found[name].now and not may_probe:
                found[name] = Due(0, probe_at)
    return found


@cache
def _question(queues: tuple[tuple[str, Any], ...]) -> str:
    now = "(SELECT last_value / 1e6 FROM simclock.micros)::float8"
    parts = [
        f"""
        SELECT '{name}', '', count(*) FILTER (WHERE free_at <= {now}), min(free_at) FILTER (WHERE free_at > {now})
        FROM (
            SELECT extract(epoch FROM GREATEST(next_retry_at, lease_expires_at))::float8 AS free_at
            FROM {due.model._meta.db_table} WHERE {due.condition}
        ) AS rows
        """  # noqa: S608 - constants of the program
        for name, due in queues
    ]
    probes = f"""
        SELECT '{BREAKER}', work, (extract(epoch FROM next_probe_at) <= {now})::int,
            extract(epoch FROM next_probe_at)::float8
        FROM marketplace_circuitbreaker WHERE opened_at IS NOT NULL
    """  # noqa: S608 - constants of this module
    for_a_person = f"""
        SELECT '{PERMANENTLY_FAILED}', '', count(*), NULL::float8
        FROM marketplace_sellertransfer WHERE status = 'permanently_failed'
    """  # noqa: S608 - constants of this module
    return " UNION ALL ".join([*parts, probes, for_a_person])
