"""What happened, by the hour: recovered, settled another way, written off, and attempts that failed.

Hours that are over stand in ``HourlyFigure``, once counted; what came after the last of them is counted from the rows,
by indexes on their times. So a question costs the same however much has gone through, and its answer is right whether
or not a worker has counted yet.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from marketplace.models.figures import TIME_GROUPS, longest_of

# Hours are counted in order, all at once up to some hour: what is later than the newest is not counted.
_COUNTED_UNTIL = "SELECT max(hour) + interval '1 hour' FROM marketplace_hourlyfigure"
BEGINNING = "-infinity"

# Of [since, until), in the groups of ``models.figures``. What was reversed elsewhere was never owed to us.
COUNTED_FROM_ROWS = f"""
    SELECT date_trunc('hour', at, 'UTC') AS hour, what, cause, currency, time_group, count(*) AS count,
        sum(amount)::bigint AS amount
    FROM (
        SELECT succeeded_at AS at, 'recovered' AS what, cause, currency, amount,
            CASE WHEN cause = 'seen_at_stripe' THEN 0
                ELSE LEAST(GREATEST(9 + ceil(2 * ln(GREATEST(EXTRACT(EPOCH FROM succeeded_at - CASE
                    WHEN in_place_of_id IS NULL THEN created_at
                    ELSE (SELECT first.created_at FROM marketplace_transferreversal AS first
                        WHERE first.id = reversal.in_place_of_id)
                END), 0.001)::float8) / ln(2::float8)), 1), {TIME_GROUPS})
            END AS time_group
        FROM marketplace_transferreversal AS reversal
        WHERE status = 'succeeded' AND succeeded_at >= %(since)s AND succeeded_at < %(until)s
        UNION ALL
        SELECT created_at, CASE WHEN kind = 'written_off' THEN kind ELSE 'settled' END, kind, currency, amount, 0
        FROM marketplace_debtentry
        WHERE created_at >= %(since)s AND created_at < %(until)s
        UNION ALL
        SELECT pgh_created_at, 'attempt_failed', last_error_code, '', 0, 0
        FROM marketplace_sellertransferhistory
        WHERE pgh_created_at >= %(since)s AND pgh_created_at < %(until)s AND stripe_transfer_id <> ''
          AND ((pgh_label = 'attempt' AND status = 'reversal_pending')
               OR (pgh_label = 'status' AND status = 'permanently_failed'))
    ) AS happened
    GROUP BY 1, 2, 3, 4, 5
"""  # noqa: S608 - a constant of this program
_HAPPENED = f"""
    SELECT date_trunc(%(unit)s, hour, 'UTC'), what, cause, currency, time_group, sum(count)::bigint, sum(amount)::bigint
    FROM (
        SELECT hour, what, cause, currency, time_group, count, amount FROM marketplace_hourlyfigure
        WHERE hour >= %(begin)s AND hour < %(since)s
        UNION ALL {COUNTED_FROM_ROWS}
    ) AS figure
    GROUP BY 1, 2, 3, 4, 5
    ORDER BY 1, 2, 3, 4, 5
"""  # noqa: S608 - the same
_TOTALS = f"""
    SELECT NULL, what, cause, currency, time_group, sum(count)::bigint, sum(amount)::bigint
    FROM (
        SELECT what, cause, currency, time_group, count, amount FROM marketplace_figuretotal
        UNION ALL SELECT what, cause, currency, time_group, count, amount FROM ({COUNTED_FROM_ROWS}) AS uncounted
    ) AS figure
    GROUP BY 2, 3, 4, 5
    ORDER BY 2, 3, 4, 5
"""  # noqa: S608 - the same


@dataclass(frozen=True, kw_only=True)
class Happened:
    """So many of one kind, and what they add up to in the currency's minor unit.

    ``at`` is the beginning of the hour or day of UTC, None of a total; the others as in ``models.figures``.
    """

    at: datetime | None
    what: str
    cause: str
    currency: str
    time_group: int
    count: int
    amount: int


def since(begin: datetime, *, unit: str) -> list[Happened]:
    """All from ``begin`` on, by ``unit``: ``hour`` or ``day``. It should be the beginning of one."""
    counted_until = _counted_until()
    uncounted = begin if counted_until is None else max(begin, counted_until)
    return _read(_HAPPENED, {"unit": unit, "begin": begin, "since": uncounted, "until": "infinity"})


def totals() -> list[Happened]:
    """All that ever happened."""
    while True:
        counted_until = _counted_until()
        found = _read(_TOTALS, {"since": counted_until or BEGINNING, "until": "infinity"})
        # Otherwise an hour was counted between the two questions, and may be there twice.
        if _counted_until() == counted_until:
            return found


def _counted_until() -> datetime | None:
    with connection.cursor() as cursor:
        cursor.execute(_COUNTED_UNTIL)
        (found,) = cursor.fetchone()
    until: datetime | None = found
    return until


def _read(sql: str, params: Mapping[str, Any]) -> list[Happened]:
    names = ("at", "what", "cause", "currency", "time_group", "count", "amount")
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return [Happened(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The time in seconds in which ``share`` of all were recovered; ``counts`` by time group. None where there is none.

    Within a group times are taken to lie evenly on its scale, so it may be wrong by a fifth.
    """
    timed = sorted((group, count) for group, count in counts.items() if group and count)
    wanted = share * sum(count for _, count in timed)
    for group, count in timed:
        if count >= wanted:
            return longest_of(group) * math.pow(2, (wanted / count - 1) / 2)
        wanted -= count
    return None


def by_time_group(figures: Sequence[Happened]) -> dict[int, int]:
    """How many were recovered in each time group."""
    found: dict[int, int] = {}
    for figure in figures:
        found[figure.time_group] = found.get(figure.time_group, 0) + figure.count
    return found
