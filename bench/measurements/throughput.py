"""How close the worker comes to what concurrency and latency allow; its processor time; Procrastinate beside it."""

import functools
import statistics

from bench import comparators, ground, workers
from bench.comparators import procrastinate
from bench.processes import PYTHON, Child, Sampler, environment
from bench.report import Bar, Row, at_least, at_most
from bench.run import Run
from bench.workers import Seen

LATENCY = 0.15
TURNS = 5
SHARES = {16: at_least(0.90, "%", 1), 32: at_least(0.88, "%", 1)}
PROCESSOR = at_most(1.4, "×")
JOBS = at_least(1.0, "×", 3)


def measure(run: Run) -> list[Row]:
    rows: list[Row] = []
    peer = f"Procrastinate {comparators.version('procrastinate', 'procrastinate')}"
    for concurrency, bar in SHARES.items():
        # About sixteen seconds of calls: in the first of them all are answered at once.
        count = concurrency * run.of(100, 24)
        seen = run.interleaved(
            {
                f"worker of {concurrency}": functools.partial(worker, run, concurrency, count),
                f"bare stripe-python, {concurrency} threads": functools.partial(bare, run, concurrency, count),
                f"{peer} of {concurrency}": functools.partial(peers, run, concurrency, count),
            },
            show=str,
            turns=run.of(TURNS, 1),
        )
        ours, stripe_alone, theirs = seen.values()
        rows += _rows(concurrency, bar, peer, ours=ours, stripe_alone=stripe_alone, theirs=theirs)
    return rows


def worker(run: Run, concurrency: int, count: int) -> Seen:
    return workers.reverse(
        run, count=count, concurrency=concurrency, behaviour={"latency": LATENCY}, STRIPE_MAX_REQUESTS_PER_SECOND="0"
    )


def bare(run: Run, concurrency: int, count: int) -> Seen:
    """The SDK's call alone, in as many threads, warmed up as the worker is."""
    warm = 2 * concurrency
    command = [PYTHON, "-m", "bench.bare_loop", run.stripe.url, str(concurrency)]
    with Child("bare", command, env=environment(), logs=ground.LOGS, talks=True) as child:
        child.hear()
        run.stripe.configure(latency=LATENCY)
        child.say(str(warm))
        child.hear()
        run.stripe.configure(latency=LATENCY)
        with Sampler([child.pid]) as sampler:
            child.say(str(count))
            child.hear()
        calls = run.stripe.calls()
    return workers.seen(calls, count=count, in_flight=concurrency, sampler=sampler)


def peers(run: Run, concurrency: int, count: int) -> Seen:
    return procrastinate.work(run, count=count, concurrency=concurrency, behaviour={"latency": LATENCY})


def _rows(
    concurrency: int, bar: Bar, peer: str, *, ours: list[Seen], stripe_alone: list[Seen], theirs: list[Seen]
) -> list[Row]:
    def middle(values: list[float]) -> float:
        return statistics.median(values)

    bare_share = middle([each.share for each in stripe_alone])
    cost, bare_cost = middle([each.processor_ms for each in ours]), middle([each.processor_ms for each in stripe_alone])
    return [
        Row(
            "throughput",
            f"reversals/s against a 150 ms Stripe, {concurrency} at once: share of concurrency/latency",
            bar,
            [each.share for each in ours],
            note=f"{middle([each.rate for each in ours]):.0f}/s; bare stripe-python {bare_share:.1%}",
            details={"per_second": [each.rate for each in ours], "bare_share": [each.share for each in stripe_alone]},
        ),
        Row(
            "throughput",
            f"worker CPU per reversal against a bare stripe-python call, {concurrency} at once",
            PROCESSOR,
            [mine.processor_ms / its.processor_ms for mine, its in zip(ours, stripe_alone, strict=True)],
            note=f"{cost:.2f} ms, bare {bare_cost:.2f} ms",
            details={
                "worker_ms": [each.processor_ms for each in ours],
                "bare_ms": [each.processor_ms for each in stripe_alone],
            },
        ),
        Row(
            "throughput",
            f"jobs/s against Procrastinate's with the same HTTP call, {concurrency} at once",
            JOBS,
            [mine.rate / its.rate for mine, its in zip(ours, theirs, strict=True)],
            note=f"{peer}: {middle([each.rate for each in theirs]):.0f}/s, "
            f"{middle([each.processor_ms for each in theirs]):.2f} ms CPU",
            details={
                "worker_per_second": [each.rate for each in ours],
                "peer_per_second": [each.rate for each in theirs],
                "peer_cpu_ms": [each.processor_ms for each in theirs],
            },
        ),
    ]
