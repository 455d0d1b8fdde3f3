"""Read-only questions that several callers ask: the statistics, the metrics, the admin's front page."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth.models import User
from django.db import ProgrammingError, connection
from django.db.models import Count, Model, Q, QuerySet, Sum
from django.db.models.functions import Now

from marketplace.models import (
    BulkRetry,
    BulkRetryItem,
    CircuitBreaker,
    Debt,
    Dispute,
    Refund,
    SellerTransfer,
    WebhookEvent,
    WorkerHeartbeat,
)
from marketplace.money import LARGEST_AMOUNT
from marketplace.states import BulkRetryItemStatus, BulkRetryStatus, EventStatus, RefundStatus, TransferStatus

M = TypeVar("M", bound=Model)

# Statuses in which a worker has to do something, by the work's name.
QUEUES: Mapping[str, tuple[type[Model], tuple[str, ...]]] = {
    "sending": (SellerTransfer, (TransferStatus.PENDING, TransferStatus.FAILED)),
    "reversing": (SellerTransfer, (TransferStatus.REVERSAL_PENDING,)),
    "refunding": (Refund, (RefundStatus.REQUESTED,)),
    "events": (WebhookEvent, (EventStatus.FAILED,)),
}
# What workers call these queues in their heartbeats.
SERVED_AS = {"sending": "transfer", "reversing": "reversal", "refunding": "refund", "events": "event"}
# Kinds of work that have a breaker: those that ask Stripe for each row.
BREAKERS = tuple(work for work in SERVED_AS.values() if work != "event")


# How often a running worker shows that it lives, and after how long without a sign it is taken for dead.
HEARTBEAT_INTERVAL = timedelta(seconds=30)
DEAD_AFTER = 3 * HEARTBEAT_INTERVAL
# Of the largest number that a row may have; longer texts need not be read as numbers.
MOST_DIGITS = len(str(LARGEST_AMOUNT))


def now() -> datetime:
    """The database's clock, by which all due times and leases are."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        (moment,) = cursor.fetchone()
    assert isinstance(moment, datetime)
    return moment


def queues_without_worker() -> list[str]:
    """The queues in which rows have been due for ``DEAD_AFTER`` while no living worker serves them, by the database's
    clock: a worker that is only just being started, after its web server, is not missed.

    A queue whose workers are switched off on purpose does not count.
    """
    served = living_workers()
    return [
        name
        for name, (model, statuses) in QUEUES.items()
        if not served[SERVED_AS[name]]
        and getattr(settings, "TRANSFER_RETRY_ENABLED" if name == "sending" else "REVERSAL_WORKER_ENABLED")
        and model._default_manager.filter(status__in=statuses, next_retry_at__lte=Now() - DEAD_AFTER).exists()
    ]


def oldest_snapshot_seconds() -> float | None:
    """For how long the oldest transaction of this database has kept old row versions alive; 0 where none does.

    While one stays open, vacuum cannot clean up behind the claims, and each claim has to step over more and more. None
    where our database user may not see that.
    """
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT COALESCE(max(EXTRACT(EPOCH FROM clock_timestamp() - xact_start)), 0)::float8
                FROM pg_stat_activity
                WHERE datname = current_database() AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
                  AND backend_type = 'client backend'
                """
            )
            (seconds,) = cursor.fetchone()
    except ProgrammingError:
        return None
    return float(seconds)


def breakers() -> dict[str, bool]:
    """Whether Stripe is taken to fail for everyone, by kind of work."""
    opened = set(CircuitBreaker.objects.filter(opened_at__isnull=False).values_list("work", flat=True))
    return {work: work in opened for work in BREAKERS}


def living_workers() -> dict[str, int]:
    """How many workers serve each kind of work, by the database's clock."""
    alive = WorkerHeartbeat.objects.filter(seen_at__gt=Now() - DEAD_AFTER)
    served = [name for queues in alive.values_list("queues", flat=True) for name in queues]
    return {name: served.count(name) for name in SERVED_AS.values()}


def refund_by_request(*, requested_by: User, request_key: str) -> Refund | None:
    """What an earlier request with the same Idempotency-Key made."""
    return Refund.objects.filter(requested_by=requested_by, request_key=request_key).first()


# --- Looking for one --------------------------------------------------------------------------------------------------


def numbered(text: str) -> list[Q]:
    """The row of this number, where the text is one."""
    is_number = text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) <= LARGEST_AMOUNT
    return [Q(pk=int(text))] if is_number else []


def found_by(rows: QuerySet[M, M], alternatives: Iterable[Q]) -> QuerySet[M, M]:
    """Those of ``rows`` to which any of the alternatives applies; each should have an index.

    Each is asked for by itself first: of an OR over several columns and tables PostgreSQL would read all rows.
    """
    found = [each for each in alternatives if rows.filter(each).exists()]
    return rows.filter(reduce(or_, found)) if found else rows.none()


# --- Bulk retries -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BulkTally:
    """So many transfers of a bulk retry with one result, in one currency; ``amount`` is what their retries move."""

    status: str
    currency: str
    count: int
    amount: int


def bulk_tallies(bulk_retry: BulkRetry) -> list[BulkTally]:
    grouped = bulk_retry.items.order_by().values("status", "currency")
    rows = grouped.annotate(count=Count("id"), total=Sum("amount")).order_by("status", "currency")
    return [
        BulkTally(status=row["status"], currency=row["currency"], count=row["count"], amount=int(row["total"]))
        for row in rows
    ]


STOPPED_BY_ITSELF = "stopped_by_itself"


def bulk_retries() -> dict[str, int]:
    """How many there are by status, 0 where none; those that stopped by themselves apart."""
    counts = dict.fromkeys([*BulkRetryStatus.values, STOPPED_BY_ITSELF], 0)
    grouped = BulkRetry.objects.order_by().values("status", "stopped_by_itself").annotate(count=Count("id"))
    for row in grouped:
        counts[STOPPED_BY_ITSELF if row["stopped_by_itself"] else row["status"]] += row["count"]
    return counts


def bulk_retry_results() -> dict[str, int]:
    """How many transfers of bulk retries that are under way have each result; 0 where none."""
    counts = dict.fromkeys(BulkRetryItemStatus.values, 0)
    items = BulkRetryItem.objects.filter(bulk_retry__next_retry_at__isnull=False)
    counts.update(items.order_by().values_list("status").annotate(Count("id")))
    return counts


def bulk_outcomes(bulk_retry: BulkRetry, *statuses: str) -> list[tuple[str, int]]:
    """Why transfers of a bulk retry have these results, and how many each; the most frequent first, at most ten."""
    grouped = bulk_retry.items.order_by().filter(status__in=statuses).values("outcome").annotate(count=Count("id"))
    return [(row["outcome"], row["count"]) for row in grouped.order_by("-count", "outcome")[:10]]


MOST_CAUSES = 20


def disputes_for_a_person() -> int:
    """In another currency than their order's, and nobody has entered how much of it they are."""
    return Dispute.objects.exclude(last_error_code="").count()


@dataclass(frozen=True, kw_only=True)
class Cause:
    """So many transfers need a person for one cause, in one currency; ``amount`` is theirs, in minor units."""

    leg: str
    code: str
    currency: str
    count: int
    amount: int


def causes() -> list[Cause]:
    """Why transfers need a person, the most frequent first, at most ``MOST_CAUSES``."""
    failed = SellerTransfer.objects.filter(status=TransferStatus.PERMANENTLY_FAILED).order_by()
    grouped = failed.values("failed_leg", "last_error_code", "currency").annotate(
        count=Count("id"), total=Sum("amount")
    )
    return [
        Cause(
            leg=row["failed_leg"],
            code=row["last_error_code"],
            currency=row["currency"],
            count=row["count"],
            amount=int(row["total"]),
        )
        for row in grouped.order_by("-count", "last_error_code", "failed_leg", "currency")[:MOST_CAUSES]
    ]


# --- What sellers owe -------------------------------------------------------------------------------------------------

# Age groups: more than so many days since it is owed, up to so many.
DEBT_AGES: Mapping[str, tuple[int, int | None]] = {
    "0-7": (0, 7),
    "8-30": (7, 30),
    "31-90": (30, 90),
    "over-90": (90, None),
}


MOST_TOTALS = 1000


@dataclass(frozen=True, kw_only=True)
class DebtTotal:
    """What one seller owes in one currency, in its minor unit; ``by_age`` as in ``DEBT_AGES``."""

    seller_id: int
    seller_name: str
    currency: str
    count: int
    amount: int
    by_age: Mapping[str, int]


def debts_aged(age: str) -> Q:
    """Debts of one age group, by the database's clock."""
    younger, older = DEBT_AGES[age]
    found = Q(owed_since__lte=Now() - timedelta(days=younger))
    return found if older is None else found & Q(owed_since__gt=Now() - timedelta(days=older))


def debt_totals(debts: QuerySet[Debt] | None = None) -> list[DebtTotal]:
    """Of open debts, by seller and currency; those who owe most first, at most ``MOST_TOTALS``."""
    rows = Debt.objects.open() if debts is None else debts
    ages = {
        f"age_{number}": Sum("amount_left", filter=debts_aged(age), default=0) for number, age in enumerate(DEBT_AGES)
    }
    grouped: Any = (
        rows.order_by()
        .values("transfer__seller_id", "transfer__seller__name", "currency")
        .annotate(count=Count("id"), total=Sum("amount_left"), **ages)
        .order_by("-total", "transfer__seller_id", "currency")[:MOST_TOTALS]
    )
    return [
        DebtTotal(
            seller_id=row["transfer__seller_id"],
            seller_name=row["transfer__seller__name"],
            currency=row["currency"],
            count=row["count"],
            amount=row["total"],
            by_age=dict(zip(DEBT_AGES, (row[name] for name in ages), strict=True)),
        )
        for row in grouped
    ]


@dataclass(frozen=True, kw_only=True)
class DebtDrift:
    """Where the account of debts does not add up: amounts in minor units."""

    what: str
    currency: str
    recorded: int
    expected: int


def debt_drift() -> list[DebtDrift]:
    """Nothing, as long as the sum of debts is that of the reversals which were not had, less what their entries say.

    The left side is read from the columns of the reversals; the right one from amounts and entries alone, by seller.
    What was netted is compared the same way, by transfer. For ``reconcile``, and for a doubt.
    """
    with connection.cursor() as cursor:
        cursor.execute(_DEBT_DRIFT)
        return [
            DebtDrift(what=what, currency=currency, recorded=int(recorded), expected=int(expected))
            for what, currency, recorded, expected in cursor.fetchall()
        ]


_DEBT_DRIFT = """
    WITH settled AS (
        SELECT reversal_id, sum(amount) AS amount FROM marketplace_debtentry GROUP BY reversal_id
    ), debts AS (
        SELECT transfer.seller_id, reversal.currency,
            sum(reversal.amount - reversal.unwanted_amount - reversal.amount_recovered - reversal.amount_written_off)
                AS recorded,
            sum(reversal.amount - reversal.unwanted_amount - COALESCE(settled.amount, 0)) AS expected
        FROM marketplace_transferreversal AS reversal
        JOIN marketplace_sellertransfer AS transfer ON transfer.id = reversal.transfer_id
        LEFT JOIN settled ON settled.reversal_id = reversal.id
        WHERE reversal.status = 'failed' AND reversal.stripe_status NOT IN ('failed', 'canceled')
        GROUP BY transfer.seller_id, reversal.currency
    ), over AS (
        -- Settled ones are no debts any more; what they say counts all the same when a refund fails.
        SELECT reversal.id, reversal.currency, reversal.amount_recovered + reversal.amount_written_off AS recorded,
            COALESCE(settled.amount, 0) AS expected
        FROM marketplace_transferreversal AS reversal
        LEFT JOIN settled ON settled.reversal_id = reversal.id
        WHERE reversal.amount_recovered <> 0 OR reversal.amount_written_off <> 0 OR settled.amount <> 0
    ), netted AS (
        SELECT transfer.id, transfer.currency, transfer.amount_netted AS recorded,
            COALESCE((SELECT sum(amount) FROM marketplace_debtentry WHERE transfer_id = transfer.id), 0) AS expected
        FROM marketplace_sellertransfer AS transfer
        WHERE transfer.amount_netted <> 0
            OR transfer.id IN (SELECT transfer_id FROM marketplace_debtentry WHERE transfer_id IS NOT NULL)
    )
    SELECT 'debts of seller ' || seller_id, currency, recorded, expected FROM debts WHERE recorded <> expected
    UNION ALL
    SELECT 'settled of reversal ' || id, currency, recorded, expected FROM over WHERE recorded <> expected
    UNION ALL
    SELECT 'netted from transfer ' || id, currency, recorded, expected FROM netted WHERE recorded <> expected
    ORDER BY 1
"""
