"""The refund's webhook, as fast as it goes and at 50 a second, against dj-stripe's endpoint."""

import contextlib
import statistics

from bench import comparators, web
from bench.processes import ChildFailed
from bench.report import Row, at_least, at_most
from bench.run import Run
from bench.web import Load, Loaded, Site

FASTER = at_least(3, "×")
LATENCY = at_most(25, "ms", 1)
CONNECTIONS = 16
WARM_UP = 300
PER_SECOND = 50
# Turns as fast as it goes: many short ones, for what else a machine does changes within seconds, and with it what a
# request costs.
TURNS, SECONDS = 24, 1.5


def measure(run: Run) -> list[Row]:
    peer = f"dj-stripe {comparators.version('djstripe', 'dj-stripe')}"
    turns = run.of(TURNS, 1)
    each, paced = 1500, PER_SECOND * run.of(15, 6)
    orders = WARM_UP + turns * each + run.repetitions * paced
    with contextlib.ExitStack() as stack:
        load = Load(run)
        stack.callback(load.stop)
        ours = stack.enter_context(web.ours(run, orders=orders))
        theirs = stack.enter_context(web.djstripe(run))
        for site in (ours, theirs):
            load.post(site, count=WARM_UP, connections=CONNECTIONS, seconds=60)
            # As autovacuum does within a minute. Until then PostgreSQL plans for empty tables, and reads them whole.
            site.connection.execute("ANALYZE")

        def fast(site: Site) -> Loaded:
            return load.post(site, count=each, connections=CONNECTIONS, seconds=SECONDS)

        def steady(site: Site) -> Loaded:
            return load.post(site, count=paced, per_second=PER_SECOND)

        fastest = run.interleaved({"ours": lambda: fast(ours), peer: lambda: fast(theirs)}, show=str, turns=turns)
        calm = run.interleaved({"ours, 50/s": lambda: steady(ours), f"{peer}, 50/s": lambda: steady(theirs)}, show=str)
        require_applied(ours)
        require_stored(theirs)
    return _rows(peer, fastest["ours"], fastest[peer], calm["ours, 50/s"], calm[f"{peer}, 50/s"])


def require_applied(site: Site) -> None:
    """Every event that was stored was applied too: its refund succeeded, and the sellers owe."""
    (events, processed, owed) = site.connection.execute(
        """
        SELECT (SELECT count(*) FROM marketplace_webhookevent),
               (SELECT count(*) FROM marketplace_webhookevent WHERE status = 'processed'),
               (SELECT count(DISTINCT refund_id) FROM marketplace_transferreversal WHERE status = 'pending')
        """
    ).fetchone() or (0, 0, 0)
    if not events == processed == owed:
        raise ChildFailed(f"of {events} events {processed} were processed, and {owed} made sellers owe")


def require_stored(site: Site) -> None:
    (triggers, processed, events) = site.connection.execute(
        """
        SELECT (SELECT count(*) FROM djstripe_webhookeventtrigger),
               (SELECT count(*) FROM djstripe_webhookeventtrigger WHERE valid AND processed),
               (SELECT count(*) FROM djstripe_event)
        """
    ).fetchone() or (0, 0, 0)
    if not triggers == processed == events:
        raise ChildFailed(f"dj-stripe processed {processed} of {triggers} events and stored {events}")


def _rows(
    peer: str, ours: list[Loaded], theirs: list[Loaded], calm: list[Loaded], their_calm: list[Loaded]
) -> list[Row]:
    def middle(values: list[float]) -> float:
        return statistics.median(values)

    def cost(loads: list[Loaded]) -> str:
        server, postgres = middle([load.server_ms for load in loads]), middle([load.postgres_ms for load in loads])
        whole = middle([load.rate for load in loads])
        return (
            f"{server:.2f} ms, {postgres:.2f} ms in PostgreSQL, {whole:.0f}/s with that and the load on the same cores"
        )

    def details(loads: list[Loaded]) -> list[dict[str, float]]:
        return [
            {
                "per_second": load.rate,
                "server_cpu_ms": load.server_ms,
                "postgres_cpu_ms": load.postgres_ms,
                "p50_ms": load.latency_ms(0.5),
                "p99_ms": load.latency_ms(0.99),
            }
            for load in loads
        ]

    pairs = list(zip(ours, theirs, strict=True))
    return [
        Row(
            "webhook",
            "refund webhook: requests/s per core of the web server (so its CPU per request) against dj-stripe's",
            FASTER,
            [mine.rate_per_core / its.rate_per_core for mine, its in pairs],
            note=f"{cost(ours)}; {peer}: {cost(theirs)}",
            details={"ours": details(ours), "dj-stripe": details(theirs)},
        ),
        Row(
            "webhook",
            "refund webhook: p99 at 50 requests/s",
            LATENCY,
            [load.latency_ms(0.99) for load in calm],
            note=f"p50 {middle([x.latency_ms(0.5) for x in calm]):.1f} ms; {peer} "
            f"p99 {middle([x.latency_ms(0.99) for x in their_calm]):.1f} ms",
            details={"ours": details(calm), "dj-stripe": details(their_calm)},
        ),
    ]
