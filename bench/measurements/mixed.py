"""One call in 50 takes five seconds: nothing may wait for it but its own thread."""

import statistics

from bench import workers
from bench.report import Row, at_least
from bench.run import Run
from bench.workers import Seen

CONCURRENCY = 16
LATENCY, SLOW, ONE_IN = 0.15, 5.0, 50
SHARE = at_least(0.85, "%", 1)


def measure(run: Run) -> list[Row]:
    # About 25 seconds of calls: several times as long as the slowest.
    count = run.of(1600, 600)
    seeds = iter(range(1, 100))

    def once() -> Seen:
        behaviour = {"latency": LATENCY, "slow": SLOW, "slow_every": ONE_IN, "seed": next(seeds)}
        return workers.reverse(
            run, count=count, concurrency=CONCURRENCY, behaviour=behaviour, STRIPE_MAX_REQUESTS_PER_SECOND="0"
        )

    (seen,) = run.interleaved({"worker of 16": once}, show=str).values()
    mean = statistics.mean(call.answered - call.arrived for each in seen for call in each.calls)
    return [
        Row(
            "mixed",
            "a mixed latency (one call in 50 takes 5 s), 16 at once: share of concurrency/mean latency",
            SHARE,
            [each.share for each in seen],
            note=f"{statistics.median(each.rate for each in seen):.0f}/s; mean latency {mean * 1000:.0f} ms",
            details={"per_second": [each.rate for each in seen], "mean_latency_ms": mean * 1000},
        )
    ]
