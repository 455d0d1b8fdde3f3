"""/, /healthz, /readyz and /metrics."""

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from marketplace import monitoring, selectors, throttle
from marketplace.models import BulkRetry, TransferReversal, WorkerHeartbeat
from marketplace.services import figures
from marketplace.workers.heartbeat import Heartbeat
from tests.api.conftest import client_of
from tests.factories import (
    BulkRetryFactory,
    BulkRetryItemFactory,
    DisputeFactory,
    RefundFactory,
    SellerTransferFactory,
    UserFactory,
    WebhookEventFactory,
    order_with_transfers,
)
from tests.overview.rows import attempt_failed, recovered, settled

ELSEWHERE = {"REMOTE_ADDR": "203.0.113.7"}


def _refuse(*_: Any, **__: Any) -> None:
    raise OperationalError("no")


def test_alive_without_a_database(client: Client) -> None:
    # No database fixture: a query would fail this test.
    response = client.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert client.post("/healthz").status_code == 405


def test_ready(client: Client, db: None) -> None:
    response = client.get("/readyz")

    assert response.status_code == 200
    assert response.json() == {"status": "ok", "checks": {"database": "ok", "migrations": "ok", "workers": "ok"}}


@pytest.mark.parametrize(
    ("make", "queue", "work", "switch"),
    [
        (lambda: SellerTransferFactory(reversal_pending=True), "reversing", "reversal", "REVERSAL_WORKER_ENABLED"),
        (RefundFactory, "refunding", "refund", "REVERSAL_WORKER_ENABLED"),
        (lambda: WebhookEventFactory(failed=True), "events", "event", "REVERSAL_WORKER_ENABLED"),
        (SellerTransferFactory, "sending", "transfer", "TRANSFER_RETRY_ENABLED"),
    ],
)
def test_not_ready_while_rows_are_due_and_no_worker_lives(
    client: Client, db: None, settings: Settings, make: Callable[[], Any], queue: str, work: str, switch: str
) -> None:
    row = make()
    # The worker may only just be starting.
    type(row).objects.update(next_retry_at=Now() - selectors.DEAD_AFTER + timedelta(seconds=10))
    assert client.get("/readyz").status_code == 200
    type(row).objects.update(next_retry_at=Now() - selectors.DEAD_AFTER)
    refused = client.get("/readyz")
    assert refused.status_code == 503
    assert refused.json()["checks"]["workers"] == f"rows have long been due and no worker lives for {queue}"
    setattr(settings, switch, False)
    assert client.get("/readyz").status_code == 200
    setattr(settings, switch, True)
    Heartbeat("another worker", ["another"], concurrency=1).beat(in_hand=0)
    assert client.get("/readyz").status_code == 503
    Heartbeat("a worker", [work], concurrency=1).beat(in_hand=0)
    assert client.get("/readyz").status_code == 200
    WorkerHeartbeat.objects.update(seen_at=Now() - selectors.DEAD_AFTER)
    assert client.get("/readyz").status_code == 503


def test_the_metrics_tell_of_bulk_retries_and_disputes(client: Client, db: None) -> None:
    scraped = client.get("/metrics").content.decode()
    for line in (
        'veza_bulk_retries{status="awaiting_approval"} 0.0',
        'veza_bulk_retries_ended_total{result="stopped_by_itself"} 0.0',
        'veza_bulk_retry_transfers{result="failed"} 0.0',
        "veza_disputes_needing_a_person 0.0",
    ):
        assert f"{line}\n" in scraped, "what an alert adds up begins with nothing"
    for status in ("planned", "awaiting_approval", "running", "finished", "canceled", "stopped"):
        BulkRetryFactory(**({} if status == "planned" else {status: True}))
    BulkRetryFactory(stopped=True, stopped_by_itself=True)
    for status in ("succeeded", "failed"):
        item = BulkRetryItemFactory(**{status: True})
        due = {"next_retry_at": Now(), "started_at": Now()} if status == "failed" else {}
        BulkRetry.objects.filter(pk=item.bulk_retry_id).update(status="canary" if due else "canceled", **due)
    DisputeFactory(needs_a_person=True)
    DisputeFactory()
    scraped = client.get("/metrics").content.decode()
    told = {
        line for line in scraped.splitlines() if line.startswith(("veza_bulk", "veza_disputes")) and "0.0" not in line
    }
    assert told == {
        'veza_bulk_retries{status="planned"} 1.0',
        'veza_bulk_retries{status="awaiting_approval"} 1.0',
        'veza_bulk_retries{status="canary"} 1.0',
        'veza_bulk_retries{status="running"} 1.0',
        'veza_bulk_retries_ended_total{result="finished"} 1.0',
        'veza_bulk_retries_ended_total{result="canceled"} 2.0',
        'veza_bulk_retries_ended_total{result="stopped"} 1.0',
        'veza_bulk_retries_ended_total{result="stopped_by_itself"} 1.0',
        'veza_bulk_retry_transfers{result="failed"} 1.0',
        "veza_disputes_needing_a_person 1.0",
    }


def test_the_metrics_tell_of_workers_breakers_and_snapshots(client: Client, db: None) -> None:
    heartbeat = Heartbeat("a worker", ["reversal", "refund"], concurrency=1)
    heartbeat.beat(in_hand=0)
    throttle.failed("transfer", channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")
    text = client.get("/metrics").content.decode()
    for line in (
        'veza_workers{work="reversal"} 1.0',
        'veza_workers{work="transfer"} 0.0',
        'veza_breaker_open{work="transfer"} 1.0',
        'veza_breaker_open{work="reversal"} 0.0',
        "veza_oldest_snapshot_seconds ",
    ):
        assert line in text
    heartbeat.stop()
    assert 'veza_workers{work="reversal"} 0.0' in client.get("/metrics").content.decode()


def test_not_ready_without_a_database(client: Client, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(connection, "cursor", _refuse)
        response = client.get("/readyz")

    assert response.status_code == 503
    assert response.json()["checks"]["database"] == "does not answer (OperationalError)"


def test_not_ready_while_migrations_wait(client: Client, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        def __init__(self, *_: Any) -> None:
            self.loader = self.graph = self

        def leaf_nodes(self) -> list[Any]:
            return []

        def migration_plan(self, _: Any) -> list[Any]:
            return [("marketplace.0002", False)]

    monkeypatch.setattr(monitoring, "MigrationExecutor", Waiting)

    response = client.get("/readyz")

    assert response.status_code == 503
    assert response.json()["checks"]["migrations"] == "1 not applied, first marketplace.0002"


def scrape(client: Client) -> dict[tuple[str, ...], float]:
    """By name and labels' values, in the order of the labels' names."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.content.decode())
        for sample in family.samples
    }


def test_what_is_open_is_read_from_the_database(client: Client, db: None) -> None:
    order_with_transfers((700, 300), status="reversal_pending")
    SellerTransferFactory(reversed=True)
    SellerTransferFactory(permanently_failed=True, amount=100, currency="usd")
    SellerTransferFactory(permanently_failed_sending=True, amount=40)
    SellerTransferFactory(amount=7, next_retry_at=timezone.now() - timedelta(hours=1))
    SellerTransferFactory(failed=True, amount=8, next_retry_at=timezone.now() + timedelta(hours=1))
    WebhookEventFactory(failed=True, next_retry_at=timezone.now() + timedelta(hours=1))
    WebhookEventFactory(given_up=True)

    found = scrape(client)

    assert found["veza_transfers", "eur", "reversal_pending"] == 2
    assert ("veza_transfers", "eur", "reversed") not in found
    assert found["veza_outstanding_minor_units", "1h", "refund", "eur", "waiting"] == 1000
    assert found["veza_outstanding_reversals", "1h", "refund", "eur", "waiting"] == 2
    assert found["veza_outstanding_minor_units", "1h", "refund", "usd", "debt"] == 100
    assert found["veza_seller_debt_minor_units", "usd"] == 100
    assert {key[2]: found[key] for key in found if key[0] == "veza_unsent_minor_units"} == {
        "pending": 7,
        "failed": 8,
        "permanently_failed": 40,
    }
    assert (found["veza_webhook_events_failed", "retrying"], found["veza_webhook_events_failed", "person"]) == (1, 1)
    assert 3600 <= found["veza_oldest_due_seconds", "sending"] < 3700
    assert found["veza_oldest_due_seconds", "events"] == 0
    assert found["veza_oldest_due_seconds", "refunding"] == 0


@pytest.mark.parametrize("hours", [1, -1])
def test_what_is_due_is_told_by_the_databases_clock(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    SellerTransferFactory(next_retry_at=Now() - timedelta(minutes=10))
    WebhookEventFactory(failed=True, next_retry_at=Now() + timedelta(minutes=10))
    right = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: right() + timedelta(hours=hours))

    found = scrape(client)

    assert 600 <= found["veza_oldest_due_seconds", "sending"] < 700
    assert found["veza_oldest_due_seconds", "events"] == 0


def test_what_happened_is_counted_from_the_rows(client: Client, db: None) -> None:
    recovered(timezone.now(), amount=300, took=timedelta(seconds=3))
    recovered(timezone.now(), amount=200, took=timedelta(hours=1))
    recovered(timezone.now(), amount=50, cause=TransferReversal.Cause.SEEN_AT_STRIPE, refund=None)
    settled(timezone.now(), amount=30)
    settled(timezone.now(), amount=20, kind="written_off")
    attempt_failed(timezone.now())

    found = scrape(client)

    assert found["veza_recovered_minor_units_total", "refund", "eur"] == 500
    assert found["veza_recovered_minor_units_total", "seen_at_stripe", "eur"] == 50
    assert found["veza_debts_settled_minor_units", "eur"] == 30
    assert found["veza_written_off_minor_units_total", "eur"] == 20
    assert found["veza_reversal_attempts_failed_total",] == 1
    bounds = {float(key[1]): value for key, value in found.items() if key[0] == "veza_recovery_seconds_bucket"}
    assert (bounds[2.0], bounds[8.0], bounds[2048.0], bounds[8192.0], bounds[float("inf")]) == (0, 1, 1, 2, 2)
    assert found["veza_recovery_seconds_count",] == 2
    # Counted once or from the rows: nothing goes back.
    figures.count()
    assert scrape(client)["veza_recovered_minor_units_total", "refund", "eur"] == 500


def test_with_no_rows_there_are_metrics_all_the_same(client: Client, db: None) -> None:
    found = scrape(client)

    assert found["veza_recovery_seconds_count",] == found["veza_reversal_attempts_failed_total",] == 0
    assert found["veza_webhook_events_failed", "person"] == 0
    assert found["veza_database_pool_connections", "in_use"] >= 1
    assert found["veza_database_pool_requests_waiting",] == 0


def test_labels_are_few_whatever_happens(client: Client, db: None) -> None:
    for number in range(5):
        SellerTransferFactory(permanently_failed=True, last_error_code=f"code_{number}")
        SellerTransferFactory(reversal_pending=True, last_error_code=f"code_{number}")
    assert not [key for key in scrape(client) if any("code_" in part for part in key)]


@pytest.mark.django_db(transaction=True)
def test_several_web_processes_tell_the_sums_of_all(child_environment: dict[str, str], tmp_path: Path) -> None:
    """Two processes that count, and one that answers."""
    environment = {**child_environment, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "ALLOWED_HOSTS": "testserver"}
    program = "import django; django.setup()\n"
    counting = program + "from marketplace.metrics import CLAIMED; CLAIMED.labels(work='reversal').inc(3)"
    answering = program + "from django.test import Client; print(Client().get('/metrics').content.decode())"
    for _ in range(2):
        subprocess.run([sys.executable, "-W", "ignore", "-c", counting], env=environment, check=True)  # noqa: S603 - our own program
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-W", "ignore", "-c", answering], env=environment, check=True, capture_output=True, text=True
    )
    assert 'veza_claimed_total{work="reversal"} 6.0' in done.stdout
    assert "veza_transfers" in done.stdout


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_metrics_are_open_to_this_machine(address: str, client: Client, db: None) -> None:
    assert client.get("/metrics", REMOTE_ADDR=address).status_code == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded"])
def test_what_came_through_a_proxy_is_not_from_this_machine(header: str, client: Client, db: None) -> None:
    assert client.get("/metrics", headers={header: "127.0.0.1"}).status_code == 403


def test_metrics_are_open_to_staff_elsewhere(client: Client, db: None) -> None:
    staff, buyer = UserFactory(staff=True), UserFactory()

    assert client.get("/metrics", **ELSEWHERE).status_code == 403
    assert client_of(staff).get("/metrics", **ELSEWHERE).status_code == 200
    assert client_of(buyer).get("/metrics", **ELSEWHERE).status_code == 403
    assert client.get("/metrics", headers={"Authorization": "Token x"}, **ELSEWHERE).status_code == 403
    client.force_login(staff)
    assert client.get("/metrics", **ELSEWHERE).status_code == 200


def test_metrics_say_when_the_database_is_away(client: Client, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.overview.waiting", _refuse)

    assert client.get("/metrics").status_code == 503


def test_the_start_page_links_and_loads_nothing(client: Client) -> None:
    page = client.get("/").content.decode()

    for address in ("/admin/", "/api/docs/", "/readyz"):
        assert f'href="{address}"' in page
    assert "http" not in page
    assert "<script" not in page
