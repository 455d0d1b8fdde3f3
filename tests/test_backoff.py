from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from marketplace.backoff import RetryPolicy

seconds = st.integers(min_value=1, max_value=366 * 24 * 3600).map(lambda number: timedelta(seconds=number))
counts = st.integers(min_value=0, max_value=10_000)
jitters = st.floats(min_value=0, max_value=1)


def policy(base: timedelta = timedelta(seconds=1), maximum: timedelta = timedelta(seconds=10)) -> RetryPolicy:
    return RetryPolicy(max_retries=5, base=base, maximum=maximum)


@pytest.mark.parametrize(("retry_count", "expected"), [(0, 1), (1, 2), (2, 4), (3, 8), (4, 10), (5, 10), (1000, 10)])
def test_delays_double_up_to_the_maximum(retry_count: int, expected: int) -> None:
    assert policy().delay(retry_count) == timedelta(seconds=expected)


def test_a_count_beyond_any_budget_costs_no_more_to_compute() -> None:
    # Two to the power of this would fill the memory.
    assert policy().delay(10**15) == timedelta(seconds=10)


@given(seconds, seconds, counts, jitters)
def test_no_delay_exceeds_the_maximum(base: timedelta, maximum: timedelta, retry_count: int, jitter: float) -> None:
    assert timedelta(0) < policy(base, maximum).delay(retry_count, jitter) <= maximum


@given(seconds, seconds, counts, jitters)
def test_jitter_only_shortens_and_by_a_tenth_at_most(
    base: timedelta, maximum: timedelta, retry_count: int, jitter: float
) -> None:
    full = policy(base, maximum).delay(retry_count)
    assert full * 0.9 <= policy(base, maximum).delay(retry_count, jitter) <= full


@given(seconds, seconds, counts)
def test_a_later_failure_never_waits_less(base: timedelta, maximum: timedelta, retry_count: int) -> None:
    assert policy(base, maximum).delay(retry_count) <= policy(base, maximum).delay(retry_count + 1)


@pytest.mark.parametrize(("retry_count", "is_exhausted"), [(0, False), (4, False), (5, True), (6, True)])
def test_the_budget_is_spent_after_the_last_retry(retry_count: int, is_exhausted: bool) -> None:
    assert policy().is_exhausted(retry_count) is is_exhausted


def test_a_budget_of_none_is_exhausted_at_once() -> None:
    assert RetryPolicy(max_retries=0, base=timedelta(seconds=1), maximum=timedelta(seconds=1)).is_exhausted(0)


@pytest.mark.parametrize("prefix", ["REVERSAL", "TRANSFER_RETRY"])
def test_each_worker_has_its_own_policy(settings: Settings, prefix: str) -> None:
    setattr(settings, f"{prefix}_MAX_RETRIES", 7)
    setattr(settings, f"{prefix}_BACKOFF_BASE", timedelta(seconds=3))
    setattr(settings, f"{prefix}_BACKOFF_MAX", timedelta(seconds=30))
    expected = RetryPolicy(max_retries=7, base=timedelta(seconds=3), maximum=timedelta(seconds=30))
    assert RetryPolicy.from_settings(prefix) == expected
    (other,) = {"REVERSAL", "TRANSFER_RETRY"} - {prefix}
    assert RetryPolicy.from_settings(other) != expected
