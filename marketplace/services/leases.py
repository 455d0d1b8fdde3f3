"""Claiming due rows: one statement, so that any number of workers share a queue and none waits for another."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from django.db import connection, models

from marketplace.errors import StaleTransition
from marketplace.models.lifecycle import Work

W = TypeVar("W", bound=Work)

# Written with every settle: the row is free again.
RELEASED: Mapping[str, Any] = {"lease_token": None, "lease_expires_at": None}


def claim(model: type[W], *, due: str, batch_size: int, lease: timedelta, also_set: str = "") -> list[W]:
    """Lease up to ``batch_size`` due rows to the caller, the longest due first.

    ``due`` is the SQL condition of the queue's partial index; ``also_set`` further assignments of the same statement.
    The database's clock decides what is due and which leases have run out, so hosts need not agree on the time. Each
    lease has a fencing token: whoever lost the lease can no longer write. Dying after this costs the lease's time.
    """
    table = model._meta.db_table
    rows = model._default_manager.raw(
        f"""
        WITH due AS MATERIALIZED (
            SELECT id FROM {table}
            WHERE {due}
              AND next_retry_at <= statement_timestamp()
              AND (lease_expires_at IS NULL OR lease_expires_at <= statement_timestamp())
            ORDER BY next_retry_at, id
            LIMIT %s
            FOR UPDATE SKIP LOCKED
        )
        UPDATE {table} AS claimed
        SET lease_token = gen_random_uuid(), lease_expires_at = statement_timestamp() + %s {also_set}
        FROM due
        WHERE claimed.id = due.id
        RETURNING claimed.*
        """,  # noqa: S608 - the pieces are constants of this program
        [batch_size, lease],
    )
    return sorted(rows, key=lambda row: (row.next_retry_at, row.pk))


def held(model: type[W], pk: Any, lease_token: UUID | None) -> W:
    """The row as it is now, locked until the transaction ends, if the lease is still ours.

    Raises:
        StaleTransition: another worker has taken the row over.

    """
    row = model._default_manager.select_for_update().filter(pk=pk, lease_token=lease_token).first()
    if row is None or lease_token is None:
        raise StaleTransition(f"the lease on {model._meta.verbose_name} {pk} is no longer ours")
    return row


def release(model: type[models.Model], pk: Any, lease_token: UUID | None) -> None:
    """Give a row back untouched, for instance when the worker stops before it began with it."""
    model._default_manager.filter(pk=pk, lease_token=lease_token).update(**RELEASED)


def seconds_until_due(model: type[Work], *, due: str) -> float | None:
    """How long until the next free row of the queue is due, by the database's clock; None where none waits.

    Leased rows do not count: whoever holds them settles them, and the rows of the dead are found by the next poll. So
    this reads one entry of the queue's index, however many rows wait.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT EXTRACT(EPOCH FROM next_retry_at - statement_timestamp())
            FROM {model._meta.db_table} WHERE {due} AND lease_token IS NULL
            ORDER BY next_retry_at, id LIMIT 1
            """  # noqa: S608 - the pieces are constants of this program
        )
        row = cursor.fetchone()
    return None if row is None else float(row[0])
