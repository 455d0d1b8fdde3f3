"""Counting what happened in the hours that are over, once and for all."""

from datetime import timedelta
from typing import Any

from django.db import connection, transaction

from marketplace import hourly
from marketplace.models import HourlyFigure
from marketplace.services import leases

CHANNEL = "veza_figures"
# Clocks are read before rows are written: what is of an hour is there so much later, unless its transaction is open.
SETTLED_AFTER = timedelta(minutes=5)
# So long until the next look, where a transaction stays open that may have something of an hour to write.
HELD_UP_SECONDS = 60
_COUNTED_UNTIL = "(SELECT COALESCE(max(hour) + interval '1 hour', '-infinity') FROM marketplace_hourlyfigure)"
# Since when a transaction of this database is open. We may not see that of another user; those do not write our rows.
_OPEN_SINCE = """
    (SELECT min(xact_start) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend')
"""
# The end of the first hour of which something is not counted.
_HOUR_ENDS = """
    date_trunc('hour', LEAST(
        (SELECT min(succeeded_at) FROM marketplace_transferreversal
         WHERE status = 'succeeded' AND succeeded_at >= counted.until),
        (SELECT min(created_at) FROM marketplace_debtentry WHERE created_at >= counted.until),
        (SELECT min(pgh_created_at) FROM marketplace_sellertransferhistory
         WHERE pgh_created_at >= counted.until AND stripe_transfer_id <> ''
           AND ((pgh_label = 'attempt' AND status = 'reversal_pending')
                OR (pgh_label = 'status' AND status = 'permanently_failed')))
    ), 'UTC') + interval '1 hour'
"""
_COUNT = f"""
    WITH counted AS (
        INSERT INTO marketplace_hourlyfigure (hour, what, cause, currency, time_group, count, amount)
        {hourly.COUNTED_FROM_ROWS}
        RETURNING *
    ), added AS (
        INSERT INTO marketplace_figuretotal AS total (what, cause, currency, time_group, count, amount)
        SELECT what, cause, currency, time_group, sum(count), sum(amount) FROM counted GROUP BY 1, 2, 3, 4
        ON CONFLICT (what, cause, currency, time_group)
        DO UPDATE SET count = total.count + EXCLUDED.count, amount = total.amount + EXCLUDED.amount
    )
    SELECT count(*) FROM counted
"""  # noqa: S608 - the same


class Due(leases.Due):
    """An hour is due when it is over, something of it is not counted, and nobody may write more of it."""

    def sql(self) -> str:
        return f"""
            (SELECT CASE
                WHEN hour.ends + interval '{SETTLED_AFTER.total_seconds()} seconds' > statement_timestamp()
                THEN EXTRACT(EPOCH FROM hour.ends - statement_timestamp())::float8 + {SETTLED_AFTER.total_seconds()}
                WHEN {_OPEN_SINCE} < hour.ends THEN {HELD_UP_SECONDS}
                WHEN hour.ends IS NOT NULL THEN 0 END
            FROM (SELECT {_COUNTED_UNTIL} AS until OFFSET 0) AS counted, LATERAL (SELECT {_HOUR_ENDS} AS ends) AS hour)
        """  # noqa: S608 - constants of this module


DUE = Due(model=HourlyFigure, condition="")


def is_due() -> bool:
    """Whether there is something to count."""
    (seconds,) = leases.seconds_until_due([DUE])
    return seconds is not None and seconds <= 0


@transaction.atomic
def count() -> int:
    """Count all hours that are over and not counted, oldest and newest in one; how many figures that made.

    Any number of processes may ask for it: one counts, and the others do nothing.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(hashtext('veza.figures'))")
        if cursor.fetchone() == (False,):
            return 0
        params: list[Any] = [SETTLED_AFTER]
        # Asked before, by a statement of its own: the next one sees all that was committed by then.
        cursor.execute(
            f"""
            SELECT {_COUNTED_UNTIL}::text,
                date_trunc('hour', LEAST(statement_timestamp() - %s, {_OPEN_SINCE}), 'UTC')::text
            """,
            params,
        )
        since, until = cursor.fetchone()
        cursor.execute(_COUNT, {"since": since, "until": until})
        (made,) = cursor.fetchone()
    return int(made)
