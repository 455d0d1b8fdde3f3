"""Four workers against two, without an allowance: no worker stands in another's way."""

import statistics

from bench import workers
from bench.report import Row, at_least
from bench.run import Run
from bench.workers import Seen

LATENCY = 0.15
# Few calls each, so that two processors are not what limits four workers.
CONCURRENCY = 4
RATIO = at_least(1.8, "×")


def measure(run: Run) -> list[Row]:
    per_worker = CONCURRENCY * run.of(50, 25)

    def once(number: int) -> Seen:
        return workers.reverse(
            run,
            count=number * per_worker,
            concurrency=CONCURRENCY,
            number=number,
            behaviour={"latency": LATENCY},
            STRIPE_MAX_REQUESTS_PER_SECOND="0",
        )

    two, four = run.interleaved({"two workers": lambda: once(2), "four workers": lambda: once(4)}, show=str).values()
    rates = [statistics.median(each.rate for each in seen) for seen in (two, four)]
    return [
        Row(
            "scale",
            f"four workers of {CONCURRENCY} without an allowance, against two",
            RATIO,
            [of_four.rate / of_two.rate for of_four, of_two in zip(four, two, strict=True)],
            note=f"{rates[1]:.0f}/s against {rates[0]:.0f}/s",
            details={"two_per_second": [each.rate for each in two], "four_per_second": [each.rate for each in four]},
        )
    ]
