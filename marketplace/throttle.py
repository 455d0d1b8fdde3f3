"""How fast we may ask Stripe, and when not at all: agreed by all workers, on any number of hosts, through PostgreSQL.

The request allowance stands before every single HTTP request, and belongs to the gateway. The circuit breaker decides
which rows are claimed and what a failure costs, and belongs to the queues: it is asked by ``services``.
"""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import structlog
from django.conf import settings
from django.db import connection

from marketplace.errors import DATABASE_TROUBLE, NotNow
from marketplace.gateway import stripe_api
from marketplace.gateway.contract import Gate
from marketplace.metrics import ALLOWANCE_SECONDS, BREAKER_OPENED, SLOWED
from marketplace.models.coordination import SUCCEEDED

logger = structlog.get_logger(__name__)

# --- The request allowance --------------------------------------------------------------------------------------------

# Departures are spaced by 1 / (rate · UTILISATION). So many a second fit into no window of one second as long as each
# leaves less late than the slack this makes: (1 / 0.965 - 1) s = 36 ms, of which the way to Stripe gets 16.
UTILISATION = 0.965
LATEST_DEPARTURE = 0.020
# How far two clocks may part in a second.
DRIFT = 1e-4
# Longer than this no call waits for its turn: its row comes again instead. Part of an attempt's length (see checks).
LONGEST_WAIT = timedelta(seconds=5)
# After a 429: this much pause, then spacing a little wider, for another program may have had its moment; much wider
# where one came less than so many seconds before. Half of what was added is forgotten in so many seconds.
PAUSE_SECONDS = 1
SLOWER = 1.15
SLOWER_AGAIN = 1.5
AGAIN_SECONDS = 10
SLOWEST = 32
# Nothing is reserved so far ahead, even at the slowest: a time beyond is of a clock that was set back since.
FARTHEST = timedelta(minutes=2)
HALF_FORGOTTEN_SECONDS = 10


class RequestAllowance:
    """At most ``rate`` requests in any one second to each endpoint of Stripe, by all processes on this database.

    Each request gets a departure time of its own. A process under load takes several at once, so that the database is
    asked about twice a second and not for every request. Safe to share between threads.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._spacing = 1 / (rate * UTILISATION)
        self._clock = _DatabaseClock()
        # Departures that are ours and not used yet, on this process's monotonic clock.
        self._departures: dict[str, deque[float]] = defaultdict(deque)
        self._last_spacing: dict[str, float] = {}
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._waiting: dict[str, int] = defaultdict(int)

    def enter(self, endpoint: str) -> float:
        """Wait until a request may leave for ``endpoint``; until when (monotonic) it must have left.

        Raises:
            NotNow: it would have to wait too long, or the database that hands out the turns is away.

        """
        with ALLOWANCE_SECONDS.time(), self._counted(endpoint):
            while True:
                departure = self._next_departure(endpoint)
                time.sleep(max(departure - time.monotonic(), 0))
                # Who overslept gives the turn up: leaving late, next to the following ones, would break the promise.
                if time.monotonic() - departure <= LATEST_DEPARTURE:
                    return departure + LATEST_DEPARTURE

    def limited(self, endpoint: str, reason: str) -> None:
        """Stripe answered 429 with this ``Stripe-Rate-Limited-Reason``: all workers slow down.

        ``global-…`` is for all endpoints; ``resource-specific`` is the matter of one object, whose row waits anyway.
        """
        SLOWED.labels(reason=reason if reason in REASONS else "other").inc()
        if reason == "resource-specific":
            return
        everywhere = reason.startswith("global-")
        for each in list(self._departures) if everywhere else [endpoint]:
            with self._locks[each]:
                self._departures[each].clear()
        logger.warning("rate_limited", endpoint="all" if everywhere else endpoint, reason=reason)
        params: list[Any] = [AGAIN, SLOWER_AGAIN, SLOWER, SLOWEST, PAUSE, everywhere, endpoint, PAUSE]
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"""
                    UPDATE marketplace_requestallowance AS a
                    SET slowness = LEAST({SLOWNESS} * CASE
                            WHEN a.slowed_at BETWEEN clock_timestamp() - %s AND clock_timestamp() THEN %s ELSE %s
                        END, %s),
                        slowed_at = clock_timestamp(),
                        next_free_at = GREATEST(a.next_free_at, clock_timestamp() + %s)
                    WHERE (%s OR a.endpoint = %s)
                      AND (a.slowed_at IS NULL OR a.slowed_at NOT BETWEEN clock_timestamp() - %s AND clock_timestamp())
                    """,  # noqa: S608 - a constant of this module
                    params,
                )
        except DATABASE_TROUBLE:
            connection.close()

    @contextmanager
    def _counted(self, endpoint: str) -> Iterator[None]:
        with self._locks[endpoint]:
            self._waiting[endpoint] += 1
        try:
            yield
        finally:
            with self._locks[endpoint]:
                self._waiting[endpoint] -= 1

    def _next_departure(self, endpoint: str) -> float:
        with self._locks[endpoint]:
            departures = self._usable(endpoint)
            if not departures:
                # As many as wait here now will be needed soon; never for more than half a second, as it last went.
                half_a_second = round(0.5 / self._last_spacing.get(endpoint, self._spacing))
                departures.extend(self._reserve(endpoint, max(min(self._waiting[endpoint], half_a_second), 1)))
            return departures.popleft()

    def in_advance(self, endpoint: str) -> "Reservation | None":
        """A turn for the request that comes of what the caller is about to ask the database for; None where there is
        one at hand, or others wait for theirs. Not used in time it is lost.
        """
        with self._locks[endpoint]:
            is_needed = not (self._usable(endpoint) or self._waiting[endpoint])
        return self._reservation(endpoint, 1) if is_needed else None

    def _usable(self, endpoint: str) -> deque[float]:
        departures = self._departures[endpoint]
        while departures and departures[0] < time.monotonic() - LATEST_DEPARTURE:
            departures.popleft()
        return departures

    def _reservation(self, endpoint: str, count: int) -> "Reservation":
        return Reservation(
            allowance=self,
            endpoint=endpoint,
            count=count,
            asked_at=time.monotonic(),
            params={
                "endpoint": endpoint,
                "turns": count,
                # Replies are slow now: a turn that is over when we hear of it would be of no use.
                "lead": timedelta(seconds=self._clock.late if self._clock.late > LATEST_DEPARTURE else 0),
                "spacing": timedelta(seconds=self._spacing),
                "longest_wait": LONGEST_WAIT,
                "farthest": FARTHEST,
            },
        )

    def _reserve(self, endpoint: str, count: int) -> list[float]:
        reservation = self._reservation(endpoint, count)
        try:
            with connection.cursor() as cursor:
                cursor.execute(RESERVE, reservation.params)
                row = cursor.fetchone()
        except DATABASE_TROUBLE as error:
            connection.close()
            raise NotNow("the database that hands out the turns is away", seconds=1) from error
        if row is None:
            raise NotNow("too many requests wait for their turn", seconds=LONGEST_WAIT.total_seconds())
        return self._departures_of(reservation, row)

    def _departures_of(self, reservation: "Reservation", row: Sequence[Any]) -> list[float]:
        after_last, spacing, read_at = map(float, row[:3])
        self._last_spacing[reservation.endpoint] = spacing
        self._clock.read(read_at, asked_at=reservation.asked_at, heard_at=time.monotonic())
        count = reservation.count
        return [self._clock.ours(after_last - (count - number) * spacing) for number in range(count)]

    def _keep(self, reservation: "Reservation", row: Sequence[Any]) -> None:
        with self._locks[reservation.endpoint]:
            self._departures[reservation.endpoint].extend(self._departures_of(reservation, row))


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What one statement of RESERVE's kind takes; whoever executes it with ``params`` has its row kept here."""

    allowance: RequestAllowance
    endpoint: str
    count: int
    # Monotonic.
    asked_at: float
    params: Mapping[str, Any]

    def keep(self, row: Sequence[Any]) -> None:
        """The turn is for the next request of this process to the endpoint."""
        self.allowance._keep(self, row)  # noqa: SLF001 - a part of it


def in_advance(gate: Gate | None, endpoint: str) -> Reservation | None:
    """See ``RequestAllowance.in_advance``; of another gate, or none, nothing can be reserved."""
    return gate.in_advance(endpoint) if isinstance(gate, RequestAllowance) else None


class _DatabaseClock:
    """The database's time on this process's monotonic clock: never early, and late by no more than its quickest reply
    was on its way. One slow reply does not shift the turns of this process among those of the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # What the database's clock has more than ours, at least; and when that was known.
        self._ahead = -math.inf
        self._known_at = 0.0
        # How long the last reply took more than the quickest.
        self.late = 0.0

    def read(self, database_time: float, *, asked_at: float, heard_at: float) -> None:
        """It was ``database_time`` there, some time between our ``asked_at`` and ``heard_at``."""
        least, most = database_time - heard_at, database_time - asked_at
        with self._lock:
            ahead = max(self._ahead - DRIFT * (heard_at - self._known_at), least)
            # Otherwise it was set back, or another database took over.
            self._ahead = ahead if ahead <= most else least
            self._known_at = heard_at
            self.late = self._ahead - least

    def ours(self, database_time: float) -> float:
        return database_time - self._ahead


# How many times the configured spacing holds now.
SLOWNESS = (
    "(1 + (a.slowness - 1) * power(0.5, LEAST(GREATEST(COALESCE("
    # A time to come is of a clock that was set back since.
    "CASE WHEN a.slowed_at <= clock_timestamp() THEN EXTRACT(EPOCH FROM clock_timestamp() - a.slowed_at) END"
    f", 10000), 0) / {HALF_FORGOTTEN_SECONDS}, 100))::float8)"
)
# Takes turns, if ``when`` holds; by ``Reservation.params``.
_TURNS = """
    INSERT INTO marketplace_requestallowance AS a (endpoint, next_free_at, spacing, slowness)
    SELECT %(endpoint)s, clock_timestamp() + %(lead)s + %(turns)s * %(spacing)s, %(spacing)s, 1 WHERE {when}
    ON CONFLICT (endpoint) DO UPDATE
    SET (next_free_at, spacing) = (
        SELECT CASE WHEN a.next_free_at > clock_timestamp() + %(farthest)s THEN clock_timestamp() + %(lead)s
            ELSE GREATEST(a.next_free_at, clock_timestamp() + %(lead)s) END + %(turns)s * s.spacing, s.spacing
        FROM (SELECT %(spacing)s * {slowness} AS spacing) AS s
    )
    WHERE a.next_free_at < clock_timestamp() + %(longest_wait)s
       OR a.next_free_at > clock_timestamp() + %(farthest)s
    RETURNING EXTRACT(EPOCH FROM next_free_at) AS after_last, EXTRACT(EPOCH FROM spacing) AS spaced,
        EXTRACT(EPOCH FROM clock_timestamp()) AS read_at
"""
RESERVE = (
    _TURNS.format(when="true", slowness=SLOWNESS)
    # Not for this commit: turns that a crash forgets are over when the database is back.
    + ", set_config('synchronous_commit', 'off', true)"
)


def reserving(*, when: str) -> str:
    """SQL for a ``WITH`` of another statement: takes the turns of a ``Reservation`` if ``when`` holds there; its row is
    ``(after_last, spaced, read_at)``.
    """
    return _TURNS.format(when=when, slowness=SLOWNESS)


PAUSE = timedelta(seconds=PAUSE_SECONDS)
AGAIN = timedelta(seconds=AGAIN_SECONDS)
REASONS = frozenset({"global-rate", "endpoint-rate", "global-concurrency", "endpoint-concurrency", "resource-specific"})


@cache
def gateway() -> stripe_api.StripeGateway:
    """The process's gateway to the configured Stripe, under the allowance that all processes share."""
    rate = settings.STRIPE_MAX_REQUESTS_PER_SECOND
    return stripe_api.connect(gate=RequestAllowance(rate) if rate else None)


# --- The circuit breaker ----------------------------------------------------------------------------------------------

# Stripe failed for so many different sellers (or orders), with no success between: not the matter of one of them. Or,
# where few sellers' rows are due, for so many different rows.
OPENS_AFTER = 5
OPENS_AFTER_ROWS = 25
# No outage of one endpoint alone is believed in for longer, unless it shows itself anew. A row tries five times again:
# so it outlasts five such hours, and rows that fail by themselves reach a person in the end.
DOUBTED_AFTER = timedelta(hours=1)
# Until the first probe of a Stripe that fails, and from then on: 5; 5, 10, 15, 15 … seconds.
PROBE_INTERVAL = timedelta(seconds=5)
LARGEST_PROBE_INTERVAL = timedelta(seconds=15)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One row may ask whether Stripe is back."""

    # The breaker has been open for so long that the rows themselves may be at fault.
    doubts: bool


def failed(work: str, *, channel: str, whom: str, everyone: bool, is_probe: bool, error: str) -> bool:
    """Stripe gave no answer, or one of a fault of its own. Whether the breaker is open now: then nothing is spent.

    ``whom`` is the seller (or order) concerned, and after a comma the row; ``everyone``: a question that concerns none
    of them failed as well. Part of the settling transaction.
    """
    params: dict[str, Any] = {
        "work": work,
        "channel": channel,
        "whom": whom,
        "everyone": everyone,
        "is_probe": is_probe,
        "error": error[:500],
        "interval": PROBE_INTERVAL,
        "largest": LARGEST_PROBE_INTERVAL,
        "sellers": OPENS_AFTER,
        "rows": OPENS_AFTER_ROWS,
    }
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO marketplace_circuitbreaker AS b
                (work, channel, failing, opened_at, next_probe_at, probes, last_error)
            VALUES (
                %(work)s, %(channel)s, ARRAY[%(whom)s]::varchar[],
                CASE WHEN %(everyone)s THEN statement_timestamp() END,
                CASE WHEN %(everyone)s THEN statement_timestamp() + %(interval)s END, 0, %(error)s
            )
            ON CONFLICT (work) DO UPDATE
            SET (failing, opened_at, next_probe_at, probes, last_error) = (
                SELECT e.failing,
                    CASE WHEN e.is_open THEN COALESCE(b.opened_at, statement_timestamp()) END,
                    CASE
                        WHEN b.opened_at IS NOT NULL AND NOT %(is_probe)s THEN b.next_probe_at
                        WHEN e.is_open THEN statement_timestamp() + LEAST(
                            %(interval)s * power(2, LEAST(GREATEST(b.probes - 1, 0), 10)), %(largest)s
                        )
                    END,
                    CASE WHEN b.opened_at IS NULL THEN 0 ELSE b.probes END,
                    %(error)s
                FROM (
                    SELECT k.failing, b.opened_at IS NOT NULL OR %(everyone)s OR cardinality(k.failing) >= %(rows)s
                        OR (SELECT count(DISTINCT split_part(each, ',', 1)) FROM unnest(k.failing) AS each)
                            >= %(sellers)s AS is_open
                    FROM (
                        -- Of an open one, only by its probes: who needs not be asked for next.
                        SELECT CASE WHEN %(whom)s = ANY (b.failing) OR b.opened_at IS NOT NULL AND (
                                NOT %(is_probe)s OR split_part(%(whom)s, ',', 1) = ANY (
                                    ARRAY(SELECT split_part(each, ',', 1) FROM unnest(b.failing) AS each)
                                )
                            ) THEN b.failing ELSE b.failing || %(whom)s::varchar END AS failing
                    ) AS k
                ) AS e
            )
            RETURNING opened_at IS NOT NULL, opened_at = statement_timestamp()
            """,
            params,
        )
        is_open, has_just_opened = cursor.fetchone()
    if has_just_opened:
        BREAKER_OPENED.labels(work=work).inc()
        logger.error("breaker_opened", work=work, everyone=everyone, error=error[:500])
    return bool(is_open)


def succeeded(work: str) -> None:
    """Stripe answered, whatever it said. Part of the settling transaction."""
    with connection.cursor() as cursor:
        cursor.execute(SUCCEEDED, {"work": work})


def take_probe(work: str, *, lease: timedelta) -> Probe | None:
    """Where the breaker is open and the caller may try one row now; no other worker may, within ``lease``."""
    params: list[Any] = [lease, work, lease, DOUBTED_AFTER]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE marketplace_circuitbreaker
            SET next_probe_at = statement_timestamp() + %s, probes = probes + 1
            WHERE work = %s AND opened_at IS NOT NULL
              -- Or of a clock that was set back since.
              AND next_probe_at NOT BETWEEN statement_timestamp() AND statement_timestamp() + %s
            RETURNING opened_at < statement_timestamp() - %s
            """,
            params,
        )
        row = cursor.fetchone()
    return Probe(doubts=row[0]) if row else None


def give_probe_back(work: str) -> None:
    """It told nothing: no row was there to try, or what happened to it says nothing of Stripe. The next probe need not
    wait for the lease.
    """
    params: list[Any] = [PROBE_INTERVAL, work]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE marketplace_circuitbreaker SET next_probe_at = statement_timestamp() + %s, probes = probes - 1
            WHERE work = %s AND opened_at IS NOT NULL AND probes > 0
            """,
            params,
        )
