"""``manage.py status``: the start page in a terminal."""

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.db.models.functions import Now
from django.utils import timezone

from marketplace import overview, throttle
from marketplace.workers.heartbeat import Heartbeat
from tests.factories import RefundFactory, SellerTransferFactory, WebhookEventFactory
from tests.overview.rows import recovered

pytestmark = pytest.mark.django_db


def run(**options: Any) -> str:
    out = StringIO()
    call_command("status", stdout=out, **options)
    return out.getvalue()


def test_an_empty_installation_says_so() -> None:
    said = run()

    for expected in ("nothing waits", "nothing is owed", "nothing was owed yet", "no worker runs", "closed"):
        assert expected in said


def test_it_says_what_waits_and_what_came_back() -> None:
    SellerTransferFactory(permanently_failed=True, amount=12345)
    SellerTransferFactory(reversal_pending=True, amount=700, currency="jpy")
    RefundFactory()
    WebhookEventFactory(given_up=True)
    recovered(timezone.now(), amount=4200)
    Heartbeat("a worker", ["reversal"], concurrency=1).beat(in_hand=2)
    throttle.failed("transfer", channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")

    said = run()

    for expected in (
        "transfers permanently_failed",
        "123.45 EUR",
        "not_found",
        "transfers reversal_pending",
        "700 JPY",
        "refunds requested",
        "events that need a person",
        "longest due: transfer",
        "EUR recovered",
        "42.00 EUR",
        "EUR given back to sellers",
        "a worker on",
        "open since",
        "0 of 1",
    ):
        assert expected in said


def test_what_is_late_is_told_by_the_databases_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    SellerTransferFactory(reversal_pending=True, next_retry_at=Now() + timedelta(minutes=10))
    right = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: right() + timedelta(hours=1))

    assert "longest due" not in run()


def test_as_json_it_is_for_programs() -> None:
    SellerTransferFactory(permanently_failed=True, amount=12345)
    waiting = SellerTransferFactory(reversal_pending=True, amount=700)

    found = json.loads(run(format="json"))

    assert {(each["status"], each["amount"]) for each in found["owed"]} == {("failed", 12345), ("pending", 700)}
    assert found["longest_due"]["reversing"]["id"] == waiting.pk
    assert found["longest_due"]["sending"] is None
    assert found["time_to_recovery"]["last_24_hours"] == {"count": 0, "p50": None, "p95": None}
    assert found["webhook_events_failed"] == {"retrying": 0, "person": 0}
    assert len(found["attempts_by_hour"]) == 24


def test_without_a_database_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OperationalError("no")

    monkeypatch.setattr(overview, "everything", refuse)
    with pytest.raises(CommandError, match="The database does not answer: no"):
        run()
