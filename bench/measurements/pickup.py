"""From the commit of a refund's webhook to the request at Stripe, worker idle; and Procrastinate's, likewise."""

import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Iterator

from bench import arithmetic, comparators, ground, web, workers
from bench.arithmetic import Call
from bench.comparators import procrastinate
from bench.ground import Connection
from bench.processes import ChildFailed
from bench.report import Row, at_most
from bench.run import Run
from bench.web import Load, Site

MEDIAN = at_most(10, "ms", 1)
TAIL = at_most(60, "ms", 1)
AGAINST = at_most(1.0, "×", 2)
LATENCY = 0.02
# Far enough apart that each finds the worker idle.
APART = (0.08, 0.16)
WARM_UP = 5
TURNS = 8


def measure(run: Run) -> list[Row]:
    peer = f"Procrastinate {comparators.version('procrastinate', 'procrastinate')}"
    count, turns = run.of(45, 60), run.of(TURNS, 1)
    pauses = random.Random(9)  # noqa: S311 - the same pauses in every run
    orders = (WARM_UP + count) * turns
    with contextlib.ExitStack() as stack:
        load = Load(run)
        stack.callback(load.stop)
        site = stack.enter_context(web.ours(run, orders=orders))
        # Default settings: the allowance is on.
        stack.enter_context(workers.started(run, web.OURS))
        up = stack.enter_context(procrastinate.started(run, concurrency=16))

        def ours() -> list[float]:
            return _ours(run, site, load, count, pauses)

        due = itertools.count(orders + 1)

        def rows_alone() -> list[float]:
            return _rows_alone(run, site, due, count, pauses)

        def theirs() -> list[float]:
            return _theirs(run, up, count, pauses)

        def show(delays: list[float]) -> str:
            return f"p50 {statistics.median(delays):.1f} ms, p99 {arithmetic.percentile(delays, 0.99):.1f} ms"

        # As many more, of which only the due time is missing.
        _owe_undue(site.connection, orders + 1, orders + (WARM_UP + count) * turns)
        mine, alone, its = run.interleaved(
            {"webhook to Stripe": ours, "due row to Stripe": rows_alone, f"{peer}'s job to Stripe": theirs},
            show=show,
            turns=turns,
        ).values()
    return _rows(peer, mine, alone, its)


def _ours(run: Run, site: Site, load: Load, count: int, pauses: random.Random) -> list[float]:
    load.just_post(site, count=WARM_UP, connections=1, seconds=30)
    time.sleep(0.5)
    run.stripe.configure(latency=LATENCY)
    for _ in range(count):
        load.just_post(site, count=1, connections=1, seconds=30)
        time.sleep(pauses.uniform(*APART))
    run.stripe.wait_for(count, seconds=30, while_runs=site.child)
    committed = _committed(
        site.connection,
        """
        SELECT transfer.stripe_transfer_id, extract(epoch FROM pg_xact_commit_timestamp(event.xmin))::float8
        FROM marketplace_webhookevent AS event
        JOIN marketplace_order AS orders
            ON orders.stripe_payment_intent_id = event.payload->'data'->'object'->>'payment_intent'
        JOIN marketplace_sellertransfer AS transfer ON transfer.order_id = orders.id
        """,
    )
    return _delays(run.stripe.calls(), committed, count)


def _owe_undue(connection: Connection, first: int, last: int) -> None:
    with connection.transaction(), ground.by_hand(connection):
        ground.fill_orders(connection, first, last)
        ground.fill_transfers(connection, first, last, due_in=0)
        ground.fill_refunds(connection, first, last)
    ground.analyze(connection)


def _rows_alone(run: Run, site: Site, due: Iterator[int], count: int, pauses: random.Random) -> list[float]:
    """As Procrastinate's jobs come: by a small process that writes one row and commits, triggers and all."""

    def make_due() -> None:
        site.connection.execute(
            """
            UPDATE marketplace_sellertransfer SET status = 'reversal_pending', next_retry_at = statement_timestamp()
            WHERE id = %s
            """,
            [next(due)],
        )

    for _ in range(WARM_UP):
        make_due()
    time.sleep(0.5)
    run.stripe.configure(latency=LATENCY)
    for _ in range(count):
        make_due()
        time.sleep(pauses.uniform(*APART))
    run.stripe.wait_for(count, seconds=30, while_runs=site.child)
    committed = _committed(
        site.connection,
        # The transfer's own row is written again by the worker; its history's first row is not.
        """
        SELECT transfer.stripe_transfer_id, min(extract(epoch FROM pg_xact_commit_timestamp(history.xmin))::float8)
        FROM marketplace_sellertransfer AS transfer
        JOIN marketplace_sellertransferhistory AS history ON history.pgh_obj_id = transfer.id
        WHERE history.status = 'reversal_pending'
        GROUP BY transfer.stripe_transfer_id
        """,
    )
    return _delays(run.stripe.calls(), committed, count)


def _theirs(run: Run, up: procrastinate.Up, count: int, pauses: random.Random) -> list[float]:
    up.defer(WARM_UP)
    time.sleep(0.5)
    run.stripe.configure(latency=LATENCY)
    for _ in range(count):
        up.defer(1)
        time.sleep(pauses.uniform(*APART))
    run.stripe.wait_for(count, seconds=30, while_runs=up.worker)
    committed = _committed(
        up.connection,
        # The job's own row is written again by the worker; its first event is not.
        """
        SELECT job.args->>'transfer', extract(epoch FROM pg_xact_commit_timestamp(event.xmin))::float8
        FROM procrastinate_jobs AS job JOIN procrastinate_events AS event ON event.job_id = job.id
        WHERE event.type = 'deferred'
        """,
    )
    return _delays(run.stripe.calls(), committed, count)


def _committed(connection: Connection, statement: str) -> dict[str, float]:
    return dict(connection.execute(ground.trusted(statement)).fetchall())


def _delays(calls: list[Call], committed: dict[str, float], count: int) -> list[float]:
    """Milliseconds. PostgreSQL takes the commit's time before it writes the commit: the earliest there is."""
    if len(calls) != count:
        raise ChildFailed(f"{len(calls)} calls for {count} commits")
    # Both clocks are this machine's: their distance is the same for all.
    distance = time.time() - time.monotonic()
    return [(call.arrived + distance - committed[call.subject]) * 1000 for call in calls]


def _rows(peer: str, mine: list[list[float]], alone: list[list[float]], its: list[list[float]]) -> list[Row]:
    middle = [statistics.median(each) for each in mine]
    tail = [arithmetic.percentile(each, 0.99) for each in mine]
    alone_middle = [statistics.median(each) for each in alone]
    their_middle = [statistics.median(each) for each in its]
    their_tail = [arithmetic.percentile(each, 0.99) for each in its]
    count = sum(map(len, mine))
    return [
        Row("pickup", "webhook commit → request at Stripe, idle worker, p50", MEDIAN, middle, note=f"{count} refunds"),
        Row("pickup", "the same, p99", TAIL, tail, note=f"slowest of all {max(map(max, mine)):.1f} ms"),
        Row(
            "pickup",
            "commit of a due row → request, against Procrastinate's commit of a job → request, p50",
            AGAINST,
            [ours / theirs for ours, theirs in zip(alone_middle, their_middle, strict=True)],
            note=f"{statistics.median(alone_middle):.1f} ms; {peer} {statistics.median(their_middle):.1f} ms, "
            f"p99 {statistics.median(their_tail):.1f} ms",
            details={"ours_p50_ms": alone_middle, "peer_p50_ms": their_middle, "peer_p99_ms": their_tail},
        ),
    ]
