"""What a system check finds, it tells by the setting's name, its value and what is expected."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from pytest_django.fixtures import Settings


def told() -> str:
    (finding,) = run_checks()
    return f"{finding.msg} {finding.hint}"


def test_a_lease_too_short(settings: Settings) -> None:
    settings.REVERSAL_LEASE = timedelta(seconds=31)
    text = told()
    for part in ("REVERSAL_LEASE is 31s", "180s", "STRIPE_CONNECT_TIMEOUT + STRIPE_READ_TIMEOUT"):
        assert part in text


# Overriding DATABASES warns, rightly: connections keep what they had. The check reads the settings only.
@pytest.mark.filterwarnings("ignore:Overriding setting DATABASES")
def test_a_pool_too_small(settings: Settings) -> None:
    settings.REVERSAL_CONCURRENCY = 17
    options: dict[str, Any] = {"pool": {"max_size": 20}}
    settings.DATABASES = {"default": {**django_settings.DATABASES["default"], "OPTIONS": options}}
    text = told()
    for part in ("REVERSAL_CONCURRENCY is 17", "needs 25 connections", "pool holds 20", "larger pool"):
        assert part in text


@pytest.mark.parametrize("name", ["REVERSAL_BACKOFF", "TRANSFER_RETRY_BACKOFF"])
def test_delays_out_of_order(settings: Settings, name: str) -> None:
    setattr(settings, f"{name}_BASE", timedelta(hours=2))
    text = told()
    for part in (f"{name}_BASE is 7200s", f"{name}_MAX is 3600s", f"{name}_BASE must be at most {name}_MAX"):
        assert part in text
