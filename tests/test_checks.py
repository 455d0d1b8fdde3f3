"""System checks: each finds its fault, and says nothing where there is none."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from pytest_django.fixtures import Settings


def found(*, deploy: bool = False) -> list[str]:
    """Our own findings: their ids, in order."""
    findings = run_checks(include_deployment_checks=deploy)
    return sorted(finding.id or "" for finding in findings if (finding.id or "").startswith("marketplace."))


def with_database(settings: Settings, **changes: Any) -> None:
    described = {**django_settings.DATABASES["default"], **changes}
    settings.DATABASES = {**django_settings.DATABASES, "default": described}


# Overriding DATABASES warns, rightly: connections keep what they had. The checks read the settings only.
reads_only_settings = pytest.mark.filterwarnings("ignore:Overriding setting DATABASES")


def test_the_tests_own_settings_have_no_fault() -> None:
    assert found(deploy=True) == []


def test_a_lease_as_long_as_an_attempt_may_take_is_enough(settings: Settings) -> None:
    settings.STRIPE_CONNECT_TIMEOUT, settings.STRIPE_READ_TIMEOUT = timedelta(seconds=5), timedelta(seconds=20)
    settings.REVERSAL_LEASE = timedelta(seconds=180)
    assert found() == []


def test_a_shorter_lease_is_an_error(settings: Settings) -> None:
    settings.STRIPE_CONNECT_TIMEOUT, settings.STRIPE_READ_TIMEOUT = timedelta(seconds=5), timedelta(seconds=20)
    settings.REVERSAL_LEASE = timedelta(seconds=179)
    assert found() == ["marketplace.E001"]
    (finding,) = run_checks()
    assert finding.msg == "REVERSAL_LEASE is 179s, but a row may be held for 180s."


def test_a_lease_that_outlasts_stripes_memory_is_an_error(settings: Settings) -> None:
    settings.REVERSAL_LEASE = timedelta(hours=3)
    assert found() == []
    settings.REVERSAL_LEASE = timedelta(hours=3, seconds=1)
    assert found() == ["marketplace.E006"]


@pytest.mark.parametrize("rate", [0, 25, 100])
def test_an_allowance_that_is_not_below_stripes_limit_is_a_warning(settings: Settings, rate: int) -> None:
    settings.STRIPE_MAX_REQUESTS_PER_SECOND = 24
    assert found() == []
    settings.STRIPE_MAX_REQUESTS_PER_SECOND = rate
    assert found() == ["marketplace.W002"]


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ("REVERSAL_BACKOFF_BASE", "REVERSAL_BACKOFF_MAX"),
        ("TRANSFER_RETRY_BACKOFF_BASE", "TRANSFER_RETRY_BACKOFF_MAX"),
        ("REVERSAL_INSUFFICIENT_FUNDS_INTERVAL", "REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE"),
    ],
)
def test_delays_out_of_order_are_an_error(settings: Settings, shorter: str, longer: str) -> None:
    setattr(settings, longer, getattr(settings, shorter))
    assert found() == []
    setattr(settings, shorter, getattr(settings, longer) + timedelta(seconds=1))
    assert found() == ["marketplace.E002"]


@reads_only_settings
def test_another_database_is_an_error(settings: Settings) -> None:
    with_database(settings, ENGINE="django.db.backends.sqlite3")
    assert "marketplace.E003" in found()


@reads_only_settings
@pytest.mark.parametrize(
    ("pool", "ids"),
    [
        ({"max_size": 24}, []),
        ({"max_size": 23}, ["marketplace.E004"]),
        ({"min_size": 24}, []),
        ({}, ["marketplace.E004"]),
        (None, []),
    ],
)
def test_a_pool_too_small_for_the_threads_is_an_error(
    settings: Settings, pool: dict[str, int] | None, ids: list[str]
) -> None:
    settings.REVERSAL_CONCURRENCY = 16
    with_database(settings, OPTIONS={"pool": pool} if pool is not None else {})
    assert found() == ids


@pytest.mark.parametrize(("name", "empty"), [("STRIPE_SECRET_KEY", ""), ("STRIPE_WEBHOOK_SECRETS", [])])
def test_an_unfinished_connection_to_stripe_is_a_warning_and_an_error_where_it_counts(
    settings: Settings, name: str, empty: Any
) -> None:
    setattr(settings, name, empty)
    assert found() == ["marketplace.W001"]
    assert found(deploy=True) == ["marketplace.E005", "marketplace.W001"]
    (finding,) = run_checks()
    assert finding.msg.startswith(f"{name} is empty")
