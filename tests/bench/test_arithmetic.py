"""The benchmark's own arithmetic: figures that are known beforehand come out of it."""

import pytest

from bench import arithmetic, processes
from bench.arithmetic import Call, Spread


def steady(concurrency: int, rounds: int, *, latency: float, gap: float = 0.0) -> list[Call]:
    """So many calls at once, again and again, each followed by a gap in which nothing runs."""
    return [
        Call(arrived=(begin := number * (latency + gap)), answered=begin + latency, status=200, subject="")
        for number in range(rounds)
        for _ in range(concurrency)
    ]


def test_calls_without_a_gap_reach_the_whole_bound() -> None:
    assert arithmetic.share_of_bound(steady(16, 40, latency=0.15), 16) == pytest.approx(1.0)


def test_a_gap_as_long_as_the_call_halves_the_share() -> None:
    assert arithmetic.share_of_bound(steady(16, 40, latency=0.15, gap=0.15), 16) == pytest.approx(0.5)


def test_the_share_is_the_rate_over_the_bound() -> None:
    calls = steady(8, 50, latency=0.2, gap=0.05)
    assert arithmetic.rate(calls, 8) / (8 / 0.2) == pytest.approx(arithmetic.share_of_bound(calls, 8))


def test_a_slow_call_that_has_not_ended_counts_for_as_long_as_it_was_watched() -> None:
    calls = [*steady(1, 11, latency=0.1), Call(arrived=0.0, answered=50.0, status=200, subject="slow")]
    assert arithmetic.share_of_bound(calls, 2) == pytest.approx(1.0)


def test_the_first_calls_that_come_at_once_do_not_raise_the_rate() -> None:
    assert arithmetic.rate(steady(16, 2, latency=1.0), 16) == pytest.approx(16.0)


def test_a_rate_of_calls_at_one_time_is_refused() -> None:
    with pytest.raises(ValueError, match="two times"):
        arithmetic.rate(steady(16, 1, latency=1.0), 16)


def test_a_window_is_half_open() -> None:
    assert arithmetic.most_in_a_window([0.0, 1.0, 2.0]) == 1
    assert arithmetic.most_in_a_window([0.0, 0.999, 1.0]) == 2


def test_the_fullest_window_is_found_wherever_it_is() -> None:
    spaced = [number * 0.1 for number in range(50)]
    assert arithmetic.most_in_a_window([*spaced, 3.11, 3.12]) == 12
    assert arithmetic.most_in_a_window([3.11, *reversed(spaced), 3.12]) == 12


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert arithmetic.percentile(values, 0.99) == 99
    assert arithmetic.percentile(values, 0.5) == 50
    assert arithmetic.percentile([7.0], 0.01) == 7


def test_a_sampled_quantity_is_read_between_its_samples() -> None:
    samples = [(0.0, 10.0), (1.0, 20.0), (2.0, 60.0)]
    assert arithmetic.at(samples, 0.5) == 15
    assert arithmetic.at(samples, 1.0) == 20
    assert arithmetic.at(samples, 1.25) == 30


@pytest.mark.parametrize("time", [-0.1, 2.1])
def test_no_quantity_is_made_up_beyond_the_samples(time: float) -> None:
    with pytest.raises(ValueError, match="do not reach"):
        arithmetic.at([(0.0, 1.0), (2.0, 1.0)], time)


def test_a_slope_is_found_through_noise_that_cancels_out() -> None:
    points = [(float(x), 3.0 + 0.5 * x + (0.1 if x % 4 in {1, 2} else -0.1)) for x in range(400)]
    assert arithmetic.slope(points) == pytest.approx(0.5, abs=0.001)


def test_a_spread_keeps_the_worst() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0)


def test_processor_time_between_two_looks_is_never_negative() -> None:
    before = {1: 5.0, 2: 40.0}
    assert processes.processor_seconds_since(before, {1: 6.5, 3: 0.25}) == 1.75
    assert processes.processor_seconds_since(before, {1: 5.0, 2: 0.0}) == 0
