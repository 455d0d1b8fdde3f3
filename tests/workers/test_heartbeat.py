"""The row by which a worker shows that it lives."""

import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models.functions import Now
from structlog.testing import capture_logs

from marketplace import selectors
from marketplace.models import WorkerHeartbeat
from marketplace.workers import heartbeat, reversal
from marketplace.workers.heartbeat import Heartbeat
from tests.conftest import plain_parameters

PATIENCE = 20


@pytest.mark.django_db
def test_it_is_written_at_once_and_then_from_time_to_time(
    django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Heartbeat("a worker", ["reversal"], concurrency=16)
    own.beat(in_hand=0)
    row = WorkerHeartbeat.objects.get()
    assert (row.queues, row.concurrency, row.in_hand) == (["reversal"], 16, 0)
    with django_assert_num_queries(0):
        own.beat(in_hand=3)
    monkeypatch.setattr(own, "next_at", own.next_at - selectors.HEARTBEAT_INTERVAL.total_seconds())
    # The row, and the age of the oldest snapshot.
    with django_assert_num_queries(2):
        own.beat(in_hand=3)
    later = WorkerHeartbeat.objects.get()
    assert (later.in_hand, later.seen_at > row.seen_at, later.started_at) == (3, True, row.started_at)


@pytest.mark.django_db
def test_the_claimer_does_not_wait_for_the_disk() -> None:
    Heartbeat("a worker", ["reversal"], concurrency=16).beat(in_hand=0)
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("off",)


@pytest.mark.django_db
def test_a_row_that_was_lost_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Heartbeat("a worker", ["reversal"], concurrency=1)
    own.beat(in_hand=0)
    WorkerHeartbeat.objects.all().delete()
    monkeypatch.setattr(own, "next_at", own.next_at - selectors.HEARTBEAT_INTERVAL.total_seconds())
    own.beat(in_hand=0)
    assert selectors.living_workers()["reversal"] == 1


@pytest.mark.django_db
def test_two_workers_of_one_process_are_two_and_a_stopped_one_is_none() -> None:
    first, second = (Heartbeat("a worker", ["reversal"], concurrency=1) for _ in range(2))
    first.beat(in_hand=0)
    second.beat(in_hand=0)
    assert selectors.living_workers() == {"transfer": 0, "reversal": 2, "refund": 0, "event": 0}
    first.stop()
    assert selectors.living_workers()["reversal"] == 1


@pytest.mark.django_db
def test_the_dead_count_no_more_and_are_forgotten_after_a_day() -> None:
    for name in ("dead for long", "dead since today"):
        Heartbeat(name, ["reversal"], concurrency=1).beat(in_hand=0)
    WorkerHeartbeat.objects.update(seen_at=Now() - selectors.DEAD_AFTER)
    WorkerHeartbeat.objects.filter(identity__startswith="dead for long").update(seen_at=Now() - timedelta(days=2))
    assert selectors.living_workers()["reversal"] == 0
    Heartbeat("alive", ["reversal"], concurrency=1).beat(in_hand=0)
    assert sorted(name.split(" on ")[0] for name in WorkerHeartbeat.objects.values_list("identity", flat=True)) == [
        "alive",
        "dead since today",
    ]


@pytest.mark.django_db(transaction=True)
def test_a_snapshot_that_is_held_open_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LONGEST_SNAPSHOT_SECONDS", 0)
    assert selectors.oldest_snapshot_seconds() == 0
    with psycopg.connect(**plain_parameters()) as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT count(*) FROM marketplace_sellertransfer")
        assert selectors.oldest_snapshot_seconds() > 0
        with capture_logs() as logs:
            Heartbeat("a worker", ["reversal"], concurrency=1).beat(in_hand=0)
        other.rollback()
    assert [entry["event"] for entry in logs] == ["snapshot_held_open"]
    with capture_logs() as logs:
        Heartbeat("a worker", ["reversal"], concurrency=1).beat(in_hand=0)
    assert logs == []


@pytest.mark.django_db(transaction=True)
def test_a_running_worker_has_one_and_takes_it_along_when_it_stops(gateway: Any, unblocked_database: None) -> None:
    worker = reversal.worker(gateway, concurrency=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    pause = threading.Event()
    for _ in range(PATIENCE * 50):
        if WorkerHeartbeat.objects.exists():
            break
        pause.wait(0.02)
    row = WorkerHeartbeat.objects.get()
    assert row.identity.startswith("reversal worker on ")
    assert set(row.queues) >= {"reversal", "refund", "event"}
    worker.stop()
    thread.join(PATIENCE)
    assert not WorkerHeartbeat.objects.exists()
