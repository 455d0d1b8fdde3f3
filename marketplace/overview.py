"""What an installation looks like at this moment: the admin's start page, ``manage.py status``, the statistics and the
metrics are made of this.

Read-only, and fast whatever has gone through: what is open is found by partial indexes, what happened by the hour.
Amounts are in minor units.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Count, F, Model, Q, Sum
from django.db.models.functions import Now

from marketplace import hourly, selectors
from marketplace.models import CircuitBreaker, Refund, RequestAllowance, WebhookEvent, WorkerHeartbeat
from marketplace.models.figures import What
from marketplace.states import OPEN_REFUNDS, EventStatus, ReversalStatus

# --- What is open -----------------------------------------------------------------------------------------------------

# How long money has been owed: up to so much. The last has no end.
AGES: Mapping[str, timedelta | None] = {
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "older": None,
}


@dataclass(frozen=True, kw_only=True)
class Owed:
    """Reversals of one kind that Stripe has not confirmed, and what they are about.

    ``status`` is ``pending`` where a worker goes on by itself, ``failed`` where it is a debt and a person decides.
    ``age`` is one of ``AGES``.
    """

    currency: str
    cause: str
    status: str
    age: str
    count: int
    amount: int


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Transfers of one open status, by their last error, which is empty where there is none.

    ``amount`` is what was or is to be sent, less what came back.
    """

    status: str
    failed_leg: str
    code: str
    currency: str
    count: int
    amount: int


def _aged() -> str:
    """Count and amount of each age group: a filter for each, for groups by an expression would have to be sorted."""
    limits = list(AGES.values())
    parts = []
    for younger, until in zip([timedelta(0), *limits], limits, strict=False):
        wanted = [f"age > interval '{younger.total_seconds():.0f} s'"] if younger else []
        wanted += [f"age <= interval '{until.total_seconds():.0f} s'"] if until is not None else []
        kept = f"FILTER (WHERE {' AND '.join(wanted)})"
        parts.append(f"count(*) {kept}, COALESCE(sum(left_of_it) {kept}, 0)::bigint")
    return ", ".join(parts)


# Read from an index alone. What a debt was settled in part of is as old as the whole was: such are few, and apart.
_OWED = f"""
    SELECT currency, cause, status, {_aged()}
    FROM (
        SELECT currency, cause, status, statement_timestamp() - created_at AS age,
            amount - unwanted_amount - amount_recovered - amount_written_off AS left_of_it
        FROM marketplace_transferreversal
        WHERE status IN ('pending', 'failed') AND in_place_of_id IS NULL
          AND NOT (status = 'failed' AND stripe_status IN ('failed', 'canceled'))
        UNION ALL
        SELECT rest.currency, rest.cause, rest.status, statement_timestamp() - first.created_at,
            rest.amount - rest.unwanted_amount - rest.amount_recovered - rest.amount_written_off
        FROM marketplace_transferreversal AS rest
        JOIN marketplace_transferreversal AS first ON first.id = rest.in_place_of_id
        WHERE rest.status IN ('pending', 'failed') AND rest.in_place_of_id IS NOT NULL
          AND NOT (rest.status = 'failed' AND rest.stripe_status IN ('failed', 'canceled'))
    ) AS owed
    GROUP BY 1, 2, 3
    ORDER BY 1, 2, 3
"""  # noqa: S608 - a constant of this program
_WAITING = """
    SELECT status, failed_leg, last_error_code, currency, count(*), sum(amount - amount_reversed)::bigint
    FROM marketplace_sellertransfer
    WHERE status IN ('pending', 'failed', 'reversal_pending', 'permanently_failed')
    GROUP BY 1, 2, 3, 4
    ORDER BY 1, 2, 3, 4
"""


def _rows(sql: str, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def owed() -> list[Owed]:
    """What sellers have to give back, in groups."""
    return [
        Owed(currency=currency, cause=cause, status=status, age=age, count=count, amount=amount)
        for currency, cause, status, *aged in _rows(_OWED)
        for age, count, amount in zip(AGES, aged[::2], aged[1::2], strict=True)
        if count
    ]


def waiting() -> list[Waiting]:
    """Transfers that are not where they should be in the end, in groups."""
    names = ("status", "failed_leg", "code", "currency", "count", "amount")
    return [Waiting(**dict(zip(names, row, strict=True))) for row in _rows(_WAITING)]


@dataclass(frozen=True, kw_only=True)
class OpenRefunds:
    """Refunds of which it is not known yet whether the buyer gets the money."""

    status: str
    currency: str
    count: int
    amount: int


def open_refunds() -> list[OpenRefunds]:
    """By status and currency."""
    return [
        OpenRefunds(status=row["status"], currency=row["currency"], count=row["count"], amount=row["total"])
        for row in Refund.objects.filter(status__in=OPEN_REFUNDS)
        .order_by()
        .values("status", "currency")
        .annotate(count=Count("id"), total=Sum("amount"))
        .order_by("status", "currency")
    ]


def failed_events() -> dict[str, int]:
    """Webhook events whose effect is missing: ``retrying`` by a worker, or a ``person`` decides."""
    failed = WebhookEvent.objects.filter(status=EventStatus.FAILED)
    is_tried_again = Q(next_retry_at__isnull=False)
    counted = failed.aggregate(retrying=Count("id", filter=is_tried_again), person=Count("id", filter=~is_tried_again))
    return {"retrying": counted["retrying"], "person": counted["person"]}


def longest_waiting(queue: str) -> tuple[Model, datetime] | None:
    """The row of a queue that is due for the longest, or next, and since or from when; None where none waits."""
    model, statuses = selectors.QUEUES[queue]
    rows = model._default_manager.filter(status__in=statuses, next_retry_at__isnull=False)
    found: Any = rows.order_by("next_retry_at", "id").only("id", "next_retry_at").first()
    return None if found is None else (found, found.next_retry_at)


# --- What happened ----------------------------------------------------------------------------------------------------

HOURS = 24
DAYS = 30


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of money of one currency in the last ``DAYS`` days, and what is open now."""

    currency: str
    recovered_count: int = 0
    recovered: int = 0
    settled_count: int = 0
    settled: int = 0
    given_back_count: int = 0
    given_back: int = 0
    written_off_count: int = 0
    written_off: int = 0
    waiting_count: int = 0
    waiting: int = 0
    person_count: int = 0
    needs_person: int = 0


@dataclass(frozen=True, kw_only=True)
class GivenBack:
    """What sellers were paid again of what had been taken back, or had paid a debt: a refund failed, a dispute was won.

    What of it was kept for their debts counts, for that is among what was settled.
    """

    currency: str
    count: int
    amount: int


# When Stripe had made it, by the history. All of it was kept for debts: it was never sent. Such transfers are few, and
# their index finds them.
_GIVEN_BACK = """
    SELECT currency, count(*), sum(amount + amount_netted)::bigint
    FROM marketplace_sellertransfer AS transfer
    WHERE gives_back_of_id IS NOT NULL AND undoes_id IS NOT NULL AND CASE
        WHEN stripe_transfer_id <> '' THEN (
            SELECT min(pgh_created_at) FROM marketplace_sellertransferhistory AS step
            WHERE step.pgh_obj_id = transfer.id AND step.stripe_transfer_id <> '')
        WHEN amount = 0 AND amount_netted > 0 THEN created_at END >= %(since)s
    GROUP BY 1
    ORDER BY 1
"""


def given_back(now: datetime) -> list[GivenBack]:
    """In the last ``DAYS`` days."""
    names = ("currency", "count", "amount")
    rows = _rows(_GIVEN_BACK, {"since": day_of(now) - timedelta(days=DAYS - 1)})
    return [GivenBack(**dict(zip(names, row, strict=True))) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """What attempts to take money back came to, within one hour or day."""

    at: datetime
    succeeded: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class RecoveryTime:
    """From owed to confirmed by Stripe, in seconds; None where nothing was recovered."""

    count: int
    p50: float | None
    p95: float | None

    @property
    def p50_shown(self) -> str:
        return spoken(self.p50)

    @property
    def p95_shown(self) -> str:
        return spoken(self.p95)


@dataclass(frozen=True, kw_only=True)
class Lately:
    """What happened in the last ``HOURS`` hours, by the hour, and in the last ``DAYS`` days, by the day."""

    hours: list[hourly.Happened]
    days: list[hourly.Happened]
    now: datetime

    def attempts_by_hour(self) -> list[Attempts]:
        first = hour_of(self.now) - timedelta(hours=HOURS - 1)
        return _attempts(self.hours, [first + timedelta(hours=n) for n in range(HOURS)])

    def attempts_by_day(self) -> list[Attempts]:
        first = day_of(self.now) - timedelta(days=DAYS - 1)
        return _attempts(self.days, [first + timedelta(days=n) for n in range(DAYS)])

    def recovery_time_of_hours(self) -> RecoveryTime:
        return _recovery_time(self.hours)

    def recovery_time_of_days(self) -> RecoveryTime:
        return _recovery_time(self.days)


def spoken(seconds: float | None) -> str:
    """A time for people, in one unit: ``0.4 s``, ``12 s``, ``3.5 min``, ``2 h``, ``9 d``."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def hour_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def day_of(moment: datetime) -> datetime:
    return hour_of(moment).replace(hour=0)


def lately(now: datetime) -> Lately:
    """Both end now; so the last hour and the last day are not whole."""
    return Lately(
        hours=hourly.since(hour_of(now) - timedelta(hours=HOURS - 1), unit="hour"),
        days=hourly.since(day_of(now) - timedelta(days=DAYS - 1), unit="day"),
        now=now,
    )


def _attempts(happened: Iterable[hourly.Happened], times: list[datetime]) -> list[Attempts]:
    counts = {at: {What.RECOVERED: 0, What.ATTEMPT_FAILED: 0} for at in times}
    for each in happened:
        # Made elsewhere, it was no attempt of ours.
        is_ours = each.what == What.ATTEMPT_FAILED or (each.what == What.RECOVERED and each.time_group)
        if each.at in counts and is_ours:
            counts[each.at][What(each.what)] += each.count
    return [
        Attempts(at=at, succeeded=found[What.RECOVERED], failed=found[What.ATTEMPT_FAILED])
        for at, found in counts.items()
    ]


def _recovery_time(happened: Iterable[hourly.Happened]) -> RecoveryTime:
    counts = hourly.by_time_group([each for each in happened if each.what == What.RECOVERED and each.time_group])
    return RecoveryTime(
        count=sum(counts.values()), p50=hourly.percentile(counts, 0.5), p95=hourly.percentile(counts, 0.95)
    )


def outcomes(
    owing: Iterable[Owed], happened: Iterable[hourly.Happened], returned: Iterable[GivenBack]
) -> list[Outcome]:
    """By currency; waiting is what workers go on with, the rest of what is owed are debts that need a person."""
    found: dict[str, dict[str, int]] = {}
    names = {What.RECOVERED: "recovered", What.SETTLED: "settled", What.WRITTEN_OFF: "written_off"}
    for each in happened:
        if each.what in names:
            _add(found, names[What(each.what)], f"{names[What(each.what)]}_count", each)
    for group in owing:
        if group.status == ReversalStatus.PENDING:
            _add(found, "waiting", "waiting_count", group)
        else:
            _add(found, "needs_person", "person_count", group)
    for back in returned:
        _add(found, "given_back", "given_back_count", back)
    return [Outcome(currency=currency, **sums) for currency, sums in sorted(found.items())]


def _add(found: dict[str, dict[str, int]], amount: str, count: str, what: Owed | hourly.Happened | GivenBack) -> None:
    sums = found.setdefault(what.currency, {})
    sums[amount] = sums.get(amount, 0) + what.amount
    sums[count] = sums.get(count, 0) + what.count


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """All that Stripe ever confirmed to have taken back, of one currency and cause."""

    currency: str
    cause: str
    count: int
    amount: int


def recovered() -> list[Recovered]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for each in hourly.totals():
        if each.what == What.RECOVERED:
            count, amount = sums.get((each.currency, each.cause), (0, 0))
            sums[each.currency, each.cause] = (count + each.count, amount + each.amount)
    return [
        Recovered(currency=currency, cause=cause, count=count, amount=amount)
        for (currency, cause), (count, amount) in sorted(sums.items())
    ]


# --- The workers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    identity: str
    queues: list[str]
    in_hand: int
    seen_seconds: float
    is_alive: bool

    @property
    def seen_shown(self) -> str:
        return spoken(self.seen_seconds)


@dataclass(frozen=True, kw_only=True)
class BreakerState:
    work: str
    opened_at: datetime | None
    next_probe_at: datetime | None
    last_error: str


@dataclass(frozen=True, kw_only=True)
class AllowanceState:
    """``per_second`` as it was last used; ``slowed_at``: when Stripe last answered 429."""

    endpoint: str
    per_second: float
    slowed_at: datetime | None


def workers() -> list[WorkerState]:
    """Those that live, and those that died without a word, by the database's clock; the freshest first."""
    rows: Any = WorkerHeartbeat.objects.annotate(age=Now() - F("seen_at")).order_by("-seen_at")[:20]
    return [
        WorkerState(
            identity=row.identity,
            queues=row.queues,
            in_hand=row.in_hand,
            seen_seconds=row.age.total_seconds(),
            is_alive=row.age < selectors.DEAD_AFTER,
        )
        for row in rows
    ]


def breakers() -> list[BreakerState]:
    """Of each kind of work, one that never failed too."""
    rows = {row.work: row for row in CircuitBreaker.objects.all()}
    return [
        BreakerState(
            work=work,
            opened_at=rows[work].opened_at if work in rows else None,
            next_probe_at=rows[work].next_probe_at if work in rows else None,
            last_error=rows[work].last_error if work in rows else "",
        )
        for work in selectors.BREAKERS
    ]


def allowances() -> list[AllowanceState]:
    """Of each endpoint that was asked, how fast."""
    return [
        AllowanceState(
            endpoint=row.endpoint,
            per_second=1 / row.spacing.total_seconds() if row.spacing else 0.0,
            slowed_at=row.slowed_at,
        )
        for row in RequestAllowance.objects.all()
    ]


# --- All of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Everything, for who may see everything."""

    now: datetime
    owed: list[Owed]
    waiting: list[Waiting]
    refunds: list[OpenRefunds]
    events: dict[str, int]
    longest: dict[str, tuple[Model, datetime] | None]
    lately: Lately
    given_back: list[GivenBack]
    workers: list[WorkerState]
    breakers: list[BreakerState]
    allowances: list[AllowanceState]

    @property
    def outcomes(self) -> list[Outcome]:
        return outcomes(self.owed, self.lately.days, self.given_back)


def everything(now: datetime) -> Overview:
    return Overview(
        now=now,
        owed=owed(),
        waiting=waiting(),
        refunds=open_refunds(),
        events=failed_events(),
        longest={queue: longest_waiting(queue) for queue in selectors.QUEUES},
        lately=lately(now),
        given_back=given_back(now),
        workers=workers(),
        breakers=breakers(),
        allowances=allowances(),
    )
