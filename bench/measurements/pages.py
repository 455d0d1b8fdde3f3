"""Server time of each page over a million transfers: the admin's, the metrics, the API's lists."""

import contextlib
import json
import shutil
import statistics
from collections.abc import Iterator

from bench import ground
from bench.ground import Connection
from bench.processes import PYTHON, Child, ChildFailed
from bench.report import Row, at_most
from bench.run import Run

BAR = at_most(200, "ms", 0)
DATABASE = "bench_pages"
CHUNK = 100_000
BYTES_PER_ROW = 2500
BUYERS = 10_000

# Milliseconds of each opening by page, and pages by group.
Opened = dict[str, dict[str, list[float]]]


def measure(run: Run) -> list[Row]:
    count = run.of(1_000_000, 50_000)
    if shutil.disk_usage(ground.STATE).free < 2 * count * BYTES_PER_ROW:
        raise ChildFailed(
            f"{count:,} rows need about {count * BYTES_PER_ROW / 1e9:.0f} GB and as much again to be safe"
        )
    seen: list[dict[str, dict[str, float]]] = []
    with run.server.database(DATABASE) as connection:
        fill(run, connection, count)
        with _pager(run) as child:
            for repetition in range(run.repetitions):
                with run.watched("pages"):
                    seen.append(_medians(_opened(child)))
                took, name = max((took, name) for pages in seen[-1].values() for name, took in pages.items())
                run.say(f"pages, {repetition + 1} of {run.repetitions}: slowest {name}, {took:.0f} ms")
    return [_row(group, [each[group] for each in seen], count) for group in seen[0]]


def _row(group: str, seen: list[dict[str, float]], count: int) -> Row:
    """The slowest page of a group stands for it: the bar is for each."""
    values = [max(pages.values()) for pages in seen]
    by_page = {name: [pages[name] for pages in seen] for name in seen[0]}
    slowest = max(by_page, key=lambda name: statistics.median(by_page[name]))
    figure, note = f"server time of {group}, {count:,} transfers", ""
    if len(by_page) > 1:
        figure = f"server time of {group}, the slowest of {len(by_page)}, {count:,} transfers"
        note = f"{slowest}; in the middle {statistics.median(map(statistics.median, by_page.values())):.0f} ms"
    return Row("pages", figure, BAR, values, note=note, details={"ms": by_page})


@contextlib.contextmanager
def _pager(run: Run) -> Iterator[Child]:
    env = run.server.settings(DATABASE, DJANGO_SETTINGS_MODULE="veza.settings", LOG_LEVEL="ERROR")
    with Child("pager", [PYTHON, "-m", "bench.pager"], env=env, logs=ground.LOGS, talks=True) as child:
        if child.hear() != "ready":
            raise ChildFailed(child.describe("did not start"))
        yield child


def _opened(child: Child) -> Opened:
    child.say("open")
    found: Opened = json.loads(child.hear())
    return found


def _medians(opened: Opened) -> dict[str, dict[str, float]]:
    return {group: {name: statistics.median(took) for name, took in pages.items()} for group, pages in opened.items()}


# --- Rows -------------------------------------------------------------------------------------------------------------

# Of each three orders one was refunded, and of each three of those the money is owed still: a hundred thousand rows, as
# after days without a worker. Of each hundred of these one needs a person.
REFUNDED_IN, OWED, FOR_A_PERSON = 3, "n % 9 = 0", "n % 900 = 0"
REVERSED = f"n % {REFUNDED_IN} = 0 AND n % 9 <> 0"
REVERSAL_ID = f"CASE WHEN {REVERSED} THEN 'trr_1Bench' || lpad(n::text, 14, '0') ELSE '' END"
# Why those that are owed wait, in turn.
CODE = f"""
    CASE WHEN {FOR_A_PERSON} THEN 'resource_missing'
        WHEN {OWED} THEN (ARRAY['', '', 'insufficient_funds', 'server_error'])[1 + n / 9 % 4] ELSE '' END
"""
# Each was taken back within the last thirty days, a second to three days after it was owed; what is owed still is up to
# sixty days old.
BACK_AT = "statement_timestamp() - n::bigint * 7919 % 2592000 * interval '1 second'"
OWED_AT = f"""
    CASE WHEN {OWED} THEN statement_timestamp() - n / 9 % 60 * interval '1 day'
        ELSE {BACK_AT} - power(2, n % 18) * interval '1 second' END
"""


def fill(run: Run, connection: Connection, count: int) -> None:
    """``count`` paid orders of one transfer and one event each, over a year, and what refunds left of them."""
    run.say(f"pages: writing {count:,} orders, their transfers, refunds and events")
    sold_at = f"statement_timestamp() - ({count} - n) * interval '1 year' / {count}"
    orders = {"created_at": sold_at, "buyer_id": f"n % {BUYERS} + 1"}
    transfers = {
        "status": f"CASE WHEN {FOR_A_PERSON} THEN 'permanently_failed' WHEN {OWED} THEN 'reversal_pending'"
        f" WHEN {REVERSED} THEN 'reversed' ELSE 'completed' END",
        "amount_reversed": f"CASE WHEN {REVERSED} THEN {ground.SHARE} ELSE 0 END",
        "stripe_reversal_id": REVERSAL_ID,
        "next_retry_at": f"CASE WHEN {OWED} AND NOT {FOR_A_PERSON} THEN statement_timestamp() END",
        "last_error_code": CODE,
        "failed_leg": f"CASE WHEN {FOR_A_PERSON} THEN 'reversing' ELSE '' END",
        "created_at": sold_at,
    }
    reversals = {
        "status": f"CASE WHEN {FOR_A_PERSON} THEN 'failed' WHEN {OWED} THEN 'pending' ELSE 'succeeded' END",
        "stripe_reversal_id": REVERSAL_ID,
        "succeeded_at": f"CASE WHEN {REVERSED} THEN {BACK_AT} END",
        "created_at": OWED_AT,
    }
    with ground.by_hand(connection), ground.without_indexes(connection):
        ground.insert(
            connection,
            "auth_user",
            {"id": "n", "username": "'buyer' || n", "is_active": "true", "password": "'!'"},
            f"generate_series(2, {BUYERS}) AS n",
        )
        for first in range(1, count + 1, CHUNK):
            last = min(first + CHUNK - 1, count)
            ground.fill_orders(connection, first, last, due_in=REFUNDED_IN, also=orders)
            ground.fill_transfers(connection, first, last, due_in=REFUNDED_IN, also=transfers)
            ground.fill_refunds(connection, first, last, due_in=REFUNDED_IN, also_reversed=reversals)
            _fill_events(connection, first, last, sold_at)
        run.say("pages: building their indexes")
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")


def _fill_events(connection: Connection, first: int, last: int, received_at: str) -> None:
    """Without payloads: no list reads them."""
    ground.insert(
        connection,
        "marketplace_webhookevent",
        {
            "status": "'processed'",
            "type": f"CASE WHEN n % {REFUNDED_IN} = 0 THEN 'refund.created' ELSE 'payment_intent.succeeded' END",
            "stripe_event_id": "'evt_1Bench' || lpad(n::text, 14, '0')",
            "received_at": received_at,
        },
        f"generate_series({first}, {last}) AS n",
    )
