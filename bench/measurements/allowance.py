"""The request allowance: how much of it is used, what any one second holds, and two workers that share it.

The fake Stripe refuses the 26th call in any window of one second; Stripe's own limiter, a bucket, is kinder.
"""

import statistics

from bench import arithmetic, workers
from bench.report import Bar, Row, at_least, at_most
from bench.run import Run
from bench.workers import Seen

LATENCY = 0.15
STRIPES_LIMIT = 25
DEFAULT = 20
SHARE = at_least(0.95, "%", 1)
REFUSED = at_most(0.005, "%", 2)


def measure(run: Run) -> list[Row]:
    seconds = run.of(12, 8)

    def once(allowance: int, number: int) -> Seen:
        return workers.reverse(
            run,
            count=allowance * seconds,
            concurrency=16 // number,
            number=number,
            warm_up=8,
            behaviour={"latency": LATENCY, "limit": STRIPES_LIMIT},
            STRIPE_MAX_REQUESTS_PER_SECOND=str(allowance),
        )

    def show(seen: Seen) -> str:
        refusals = f"{refused(seen)} of {len(seen.calls)} refused"
        return f"{per_second(seen):.2f}/s, {most(seen)} in the fullest second, {refusals}"

    one, all_of_it, two = run.interleaved(
        {
            f"allowance {DEFAULT}, one worker": lambda: once(DEFAULT, 1),
            f"allowance {STRIPES_LIMIT}, one worker": lambda: once(STRIPES_LIMIT, 1),
            f"allowance {DEFAULT}, two workers": lambda: once(DEFAULT, 2),
        },
        show=show,
    ).values()
    return [
        _share(f"the same with the default allowance of {DEFAULT}/s: share of the allowance", one, DEFAULT),
        _most(f"the default allowance: calls in the fullest second ({DEFAULT} allowed)", one, DEFAULT),
        _refused("the default allowance: calls answered 429 (limit 25/s)", one),
        _share("an allowance of all of Stripe's 25/s: share of the allowance", all_of_it, STRIPES_LIMIT),
        _refused("an allowance of all of Stripe's 25/s: calls answered 429", all_of_it),
        _share(f"two workers under one allowance of {DEFAULT}/s: their sum's share of it", two, DEFAULT),
        _most(f"two workers under one allowance: calls in the fullest second ({DEFAULT} allowed)", two, DEFAULT),
    ]


def per_second(seen: Seen) -> float:
    """Departures are spaced, so only the first call is not counted: it opens the time."""
    return arithmetic.rate(seen.calls, 1)


def refused(seen: Seen) -> int:
    return sum(call.status == 429 for call in seen.calls)


def most(seen: Seen) -> int:
    return arithmetic.most_in_a_window([call.arrived for call in seen.calls])


def _share(figure: str, seen: list[Seen], allowance: int) -> Row:
    rates = [per_second(each) for each in seen]
    return Row(
        "allowance",
        figure,
        SHARE,
        [each / allowance for each in rates],
        note=f"{statistics.median(rates):.2f}/s",
        details={"per_second": rates},
    )


def _most(figure: str, seen: list[Seen], allowance: int) -> Row:
    bar = Bar(limit=allowance, at_least=False, decimals=0)
    return Row("allowance", figure, bar, [most(each) for each in seen], worst=True)


def _refused(figure: str, seen: list[Seen]) -> Row:
    return Row(
        "allowance",
        figure,
        REFUSED,
        [refused(each) / len(each.calls) for each in seen],
        worst=True,
        note=f"{sum(map(refused, seen))} of {sum(len(each.calls) for each in seen)} calls; "
        f"at most {max(map(most, seen))} in a second",
    )
