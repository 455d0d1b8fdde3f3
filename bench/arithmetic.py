"""From what was seen to figures. Pure: tested by tests/bench."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One request as the fake Stripe saw it; seconds on the machine's monotonic clock."""

    arrived: float
    answered: float
    status: int
    subject: str


@dataclass(frozen=True)
class Spread:
    """The repetitions of one figure."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median=statistics.median(values), low=min(values), high=max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank: a value that occurred, never one between two."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def share_of_bound(calls: Sequence[Call], concurrency: int) -> float:
    """Achieved / (concurrency / mean latency as delivered), between the first and the last arrival.

    By Little's law that is the mean number of calls in flight, over ``concurrency``: counted so, a slow call that has
    not ended at the last arrival cannot distort it.
    """
    begin, end = _window(calls)
    busy = sum(max(min(call.answered, end) - call.arrived, 0.0) for call in calls)
    return busy / (concurrency * (end - begin))


def rate(calls: Sequence[Call], in_flight: int) -> float:
    """Calls a second between the first and the last arrival. The first ``in_flight`` come at once."""
    begin, end = _window(calls)
    return (len(calls) - in_flight) / (end - begin)


def most_in_a_window(times: Sequence[float], seconds: float = 1.0) -> int:
    """The most events that any half-open window of this length holds."""
    ordered = sorted(times)
    most = first = 0
    for last, time in enumerate(ordered):
        while time - ordered[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def at(samples: Sequence[tuple[float, float]], time: float) -> float:
    """What a growing quantity was at ``time``, between two samples of (time, value)."""
    before = [sample for sample in samples if sample[0] <= time]
    after = [sample for sample in samples if sample[0] >= time]
    if not before or not after:
        raise ValueError("the samples do not reach around this time")
    (t0, v0), (t1, v1) = before[-1], after[0]
    return v0 if t1 == t0 else v0 + (v1 - v0) * (time - t0) / (t1 - t0)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points, by least squares."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def _window(calls: Sequence[Call]) -> tuple[float, float]:
    arrivals = [call.arrived for call in calls]
    begin, end = min(arrivals), max(arrivals)
    if end <= begin:
        raise ValueError("a rate needs calls at two times at least")
    return begin, end
