"""Claiming due rows: one statement, so that any number of workers share a queue and none waits for another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

from django.db import connection, models, transaction
from django.db.models.functions import Now

from marketplace.errors import StaleTransition
from marketplace.models.lifecycle import Work

W = TypeVar("W", bound=Work)

# Written with every settle: the row is free again.
RELEASED: Mapping[str, Any] = {"lease_token": None, "lease_expires_at": None}

CLAIMED = """
    SELECT *, statement_timestamp() AS claimed_at, %(past_breaker)s AS is_probe FROM claimed ORDER BY next_retry_at, id
"""
# The due rows of a queue, locked. No worker waits for another's.
DUE = """
    due AS MATERIALIZED (
        SELECT id FROM {table}
        WHERE {due}
          AND next_retry_at <= statement_timestamp()
          AND (lease_expires_at IS NULL OR lease_expires_at <= statement_timestamp())
          AND (%(past_breaker)s OR NOT EXISTS (
              SELECT FROM marketplace_circuitbreaker WHERE work = %(work)s AND opened_at IS NOT NULL
          ))
        ORDER BY {first} next_retry_at, id
        LIMIT %(batch_size)s
        FOR NO KEY UPDATE SKIP LOCKED
    ), claimed AS (
        UPDATE {table} AS taken
        SET lease_token = gen_random_uuid(), lease_expires_at = statement_timestamp() + %(lease)s {also_set}
        FROM due
        WHERE taken.id = due.id
        RETURNING taken.*
    )
"""
# A probe is for somebody for whom Stripe has not failed, where there is one. Else a row that Stripe serves would wait
# behind all that are due for longer, and those may be the thousands of one seller that fail by themselves.
UNSUSPECTED = """
    {whom} = ANY (ARRAY(
        SELECT split_part(each, ',', 1) FROM marketplace_circuitbreaker, unnest(failing) AS each WHERE work = %(work)s
    )),
"""


def require_no_transaction() -> None:
    """What one statement does is committed on its return, unless somebody has a transaction open: a bug, refused here
    as ``atomic(durable=True)`` does.

    Raises:
        RuntimeError: a transaction is open, other than the one that Django's tests run in.

    """
    blocks = connection.atomic_blocks
    if blocks and not blocks[-1]._from_testcase:  # type: ignore[attr-defined]  # noqa: SLF001 - as Atomic itself asks
        raise RuntimeError("A claim or a settle must not be part of somebody's transaction.")


def keep_plans(*, in_sessions: bool) -> None:
    """Whether the calling thread's connection keeps the plans of statements that ask for it, which saves a third of a
    claim's time. Only where it leads to sessions of PostgreSQL: a pooler may bring each transaction to another one.
    """
    connection.ensure_connection()
    connection.connection.prepare_threshold = 0 if in_sessions else None


def claiming(model: type[models.Model], *, due: str, also_set: str = "", probe_for: str = "") -> str:
    """The head of a statement that leases due rows, which its rest finds as ``claimed``.

    ``due`` is the SQL condition of the queue's partial index; ``also_set`` further assignments of the same statement;
    ``probe_for``, of a probe, is ``Due.whom``.
    Its parameters: ``batch_size``, ``lease``, ``work`` (whose breaker holds the queue back), ``past_breaker``.
    """
    first = UNSUSPECTED.format(whom=probe_for) if probe_for else ""
    return "WITH" + DUE.format(table=model._meta.db_table, due=due, also_set=also_set, first=first)


def claim(
    model: type[W],
    *,
    due: str,
    batch_size: int,
    lease: timedelta,
    work: str = "",
    past_breaker: bool = False,
    whom: str = "",
    also_set: str = "",
) -> list[W]:
    """Lease up to ``batch_size`` due rows to the caller, the longest due first; none while ``work``'s breaker is open,
    unless ``past_breaker``: then first of those for ``whom`` (as in ``Due``) Stripe has not failed.

    The database's clock decides what is due and which leases have run out, so hosts need not agree on the time. Each
    lease has a fencing token: whoever lost the lease can no longer write. Dying after this costs the lease's time.
    One statement, committed on return.
    """
    require_no_transaction()
    rows = model._default_manager.raw(
        claiming(model, due=due, also_set=also_set, probe_for=whom if past_breaker else "") + CLAIMED,
        {"batch_size": batch_size, "lease": lease, "work": work, "past_breaker": past_breaker},
    )
    return list(rows)


def held(model: type[W], pk: Any, lease_token: UUID | None) -> W:
    """The row as it is now, locked until the transaction ends, if the lease is still ours.

    Raises:
        StaleTransition: another worker has taken the row over.

    """
    row = model._default_manager.select_for_update(no_key=True).filter(pk=pk, lease_token=lease_token).first()
    if row is None or lease_token is None:
        raise StaleTransition(f"the lease on {model._meta.verbose_name} {pk} is no longer ours")
    return row


def begin_generation(claimed: W, *, actor: str) -> W:
    """A new idempotency key for what a look at Stripe did not find; committed before it is sent.

    Raises:
        StaleTransition: the lease was lost meanwhile.

    """
    with transaction.atomic(durable=True):
        row: Any = held(type(claimed), claimed.pk, claimed.lease_token)
        row.change(
            actor=actor,
            reason="not found at Stripe",
            held_by=claimed.lease_token,
            key_generation=row.key_generation + 1,
            first_attempted_at=Now(),
            look_first=False,
        )
        row.claimed_at, row.is_probe = claimed.claimed_at, claimed.is_probe
        return cast("W", row)


def release(model: type[models.Model], pk: Any, lease_token: UUID | None) -> None:
    """Give a row back untouched, for instance when the worker stops before it began with it."""
    model._default_manager.filter(pk=pk, lease_token=lease_token).update(**RELEASED)


@dataclass(frozen=True, kw_only=True)
class Due:
    """Where a queue's due rows stand: the condition of its partial index, and the work whose breaker holds it back.

    ``whom`` is SQL of whom a row concerns, as its queue says it to the breaker (``outcomes.count_failure``).
    """

    model: type[models.Model]
    condition: str
    work: str = ""
    whom: str = ""

    def sql(self) -> str:
        # Leased rows do not count: who holds them settles them. One entry of the index is read, however many wait.
        return f"""
            (SELECT EXTRACT(EPOCH FROM GREATEST(next_retry_at, (
                SELECT next_probe_at FROM marketplace_circuitbreaker WHERE work = '{self.work}'
            )) - statement_timestamp())::float8
            FROM {self.model._meta.db_table}
            WHERE {self.condition} AND (lease_expires_at IS NULL OR lease_expires_at <= statement_timestamp())
            ORDER BY next_retry_at, id LIMIT 1)
        """  # noqa: S608 - the pieces are constants of this program


def seconds_until_due(queues: Sequence[Due]) -> list[float | None]:
    """For each queue, how long until its next free row is due, by the database's clock; None where none waits.

    One statement for all. Less than zero: it is overdue. While a breaker is open, its next probe counts.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(due.sql() for due in queues))
        return list(cursor.fetchone())
