"""What happened by the hour: the same figures whether they were counted before or not."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.utils import timezone
from structlog.testing import capture_logs

from marketplace import hourly
from marketplace.models import FigureTotal, HourlyFigure, TransferReversal
from marketplace.models.figures import TIME_GROUPS, longest_of
from marketplace.services import figures, leases
from marketplace.states import ReversalStatus
from marketplace.workers.figures import FigureQueue
from tests.conftest import plain_parameters
from tests.factories import SellerTransferFactory, TransferReversalFactory
from tests.overview.rows import attempt_failed, recovered, settled

EVER = datetime(2020, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def hours_ago(hours: float) -> datetime:
    return timezone.now() - timedelta(hours=hours)


def seen(unit: str = "hour") -> list[tuple[Any, ...]]:
    return [(h.at, h.what, h.cause, h.currency, h.time_group, h.count, h.amount) for h in hourly.since(EVER, unit=unit)]


def of_everything() -> None:
    recovered(hours_ago(30), amount=1000)
    recovered(hours_ago(30), amount=500)
    recovered(hours_ago(26), amount=700, currency="jpy")
    recovered(hours_ago(0.01), amount=900)
    settled(hours_ago(30), amount=300)
    settled(hours_ago(0.01), amount=400, kind="written_off")
    attempt_failed(hours_ago(30))
    attempt_failed(hours_ago(0.01))


def test_nothing_happened(db: None) -> None:
    assert hourly.since(EVER, unit="day") == hourly.totals() == []
    assert not figures.is_due()
    assert figures.count() == 0


def test_counted_or_not_the_figures_are_the_same(db: None) -> None:
    of_everything()
    by_hour, by_day, in_all = seen(), seen("day"), hourly.totals()
    assert sum(row[5] for row in by_hour) == 8
    assert {(t.what, t.cause, t.currency): (t.count, t.amount) for t in in_all} == {
        ("recovered", "refund", "eur"): (3, 2400),
        ("recovered", "refund", "jpy"): (1, 700),
        ("settled", "paid", "eur"): (1, 300),
        ("written_off", "written_off", "eur"): (1, 400),
        ("attempt_failed", "server_error", ""): (2, 0),
    }
    assert figures.is_due()

    assert figures.count() == 4

    assert not figures.is_due()
    assert (seen(), seen("day"), hourly.totals()) == (by_hour, by_day, in_all)
    assert sum(figure.count for figure in HourlyFigure.objects.all()) == 5
    # A second time nothing is added, and what comes later is.
    assert figures.count() == 0
    recovered(hours_ago(2), amount=1)
    recovered(hours_ago(1.2), amount=1)
    assert figures.is_due()
    assert figures.count() >= 1
    assert sum(t.amount for t in hourly.totals() if t.what == "recovered" and t.currency == "eur") == 2402
    assert FigureTotal.objects.get(what="recovered", currency="eur").count == 4


def test_only_hours_that_are_asked_for_are_told(db: None) -> None:
    of_everything()
    figures.count()

    assert {
        h.currency for h in hourly.since(hours_ago(28).replace(minute=0), unit="hour") if h.what == "recovered"
    } == {
        "jpy",
        "eur",
    }
    assert [h.amount for h in hourly.since(hours_ago(1), unit="hour") if h.what == "recovered"] == [900]


def test_the_time_from_owed_to_recovered_is_told_in_groups(db: None) -> None:
    for seconds in (0.01, 0.5, 10, 100, 100, 100, 10**9):
        recovered(hours_ago(0), took=timedelta(seconds=seconds))
    # Owed to nobody before it was done.
    recovered(hours_ago(0), cause=TransferReversal.Cause.SEEN_AT_STRIPE, refund=None)

    counts = hourly.by_time_group(hourly.totals())

    assert sorted(counts) == [0, 1, 7, 16, 23, TIME_GROUPS]
    assert longest_of(7) == 0.5
    assert longest_of(22) < 100 <= longest_of(23)
    median = hourly.percentile(counts, 0.5)
    assert median is not None
    assert longest_of(22) < median <= longest_of(23)
    assert hourly.percentile(counts, 1) == longest_of(TIME_GROUPS)
    assert hourly.percentile({0: 5}, 0.5) is None


def test_the_rest_of_a_debt_is_as_old_as_the_whole(db: None) -> None:
    at = hours_ago(0)
    transfer = SellerTransferFactory(reversed=True, amount=1000, reversal=False)
    first = TransferReversalFactory(transfer=transfer, canceled=True, amount=1000)
    TransferReversal.objects.filter(pk=first.pk).update(created_at=at - timedelta(seconds=1000))
    rest = TransferReversalFactory(transfer=transfer, succeeded=True, amount=600, in_place_of=first)
    TransferReversal.objects.filter(pk=rest.pk).update(succeeded_at=at, created_at=at - timedelta(seconds=1))

    (group,) = hourly.by_time_group(hourly.totals())

    assert longest_of(group - 1) < 1000 <= longest_of(group)


def test_an_hour_is_counted_some_minutes_after_its_end(db: None) -> None:
    now = timezone.now()
    (before,) = [now.replace(minute=0, second=0, microsecond=0) - timedelta(seconds=1)]
    recovered(before)
    is_late_enough = now - before > figures.SETTLED_AFTER + timedelta(seconds=1)

    assert figures.is_due() is is_late_enough
    assert figures.count() == int(is_late_enough)


def test_the_database_writes_the_time_of_success(db: None) -> None:
    reversal = TransferReversalFactory()
    assert reversal.succeeded_at is None
    reversal.transition(ReversalStatus.SUCCEEDED, reason="r", actor="a", stripe_reversal_id="trr_1")
    at_once = TransferReversalFactory(
        transfer=SellerTransferFactory(reversed=True, reversal=False), succeeded=True, stripe_reversal_id="trr_2"
    )
    for made in (reversal, at_once):
        made.refresh_from_db()
        assert timezone.now() - made.succeeded_at < timedelta(minutes=1)
    before = at_once.succeeded_at
    at_once.change(reason="r", actor="a", stripe_status="succeeded")
    at_once.refresh_from_db()
    assert at_once.succeeded_at == before


@pytest.mark.django_db(transaction=True)
def test_who_may_still_write_something_of_an_hour_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the hour of now were over: then a transaction that is open began before its end.
    monkeypatch.setattr(figures, "SETTLED_AFTER", -HOUR)
    recovered(hours_ago(0))
    with psycopg.connect(**plain_parameters()) as other:
        other.execute("SELECT 1")
        assert leases.seconds_until_due([figures.DUE]) == [figures.HELD_UP_SECONDS]
        assert not figures.is_due()
        assert figures.count() == 0
    assert figures.is_due()
    assert figures.count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_at_once_count_once(unblocked_database: None) -> None:
    recovered(hours_ago(3))
    with psycopg.connect(**plain_parameters()) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('veza.figures'))")
        assert figures.count() == 0
        assert figures.is_due()
        other.execute("SELECT pg_advisory_unlock_all()")
    assert figures.count() == 1


def queue_run_dry(queue: FigureQueue) -> int:
    done = 0
    while claimed := queue.claim(batch_size=10, lease=HOUR):
        for each in claimed:
            assert not queue.is_held_back(each)
            queue.perform(each)
            done += 1
    return done


def test_a_worker_counts(db: None) -> None:
    queue = FigureQueue()
    assert queue_run_dry(queue) == 0
    recovered(hours_ago(3))
    with capture_logs() as lines:
        assert queue_run_dry(queue) == 1
    assert [line["event"] for line in lines] == ["hours_counted"]
    assert queue_run_dry(queue) == 0


def test_what_is_in_hand_is_not_claimed_again_before_it_is_given_back(db: None) -> None:
    queue = FigureQueue()
    recovered(hours_ago(3))
    (claimed,) = queue.claim(batch_size=1, lease=HOUR)
    assert queue.describe(claimed) == {"figures": "of hours that are over"}
    assert queue.claim(batch_size=1, lease=HOUR) == []
    queue.release(claimed)
    assert queue_run_dry(queue) == 1


def test_after_an_error_it_rests(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = FigureQueue()
    recovered(hours_ago(3))

    def fail() -> int:
        raise ValueError("an error of our own")

    (claimed,) = queue.claim(batch_size=1, lease=HOUR)
    with monkeypatch.context() as patched:
        patched.setattr(figures, "count", fail)
        with pytest.raises(ValueError, match="of our own") as raised:
            queue.perform(claimed)
        queue.settle_unexpected(claimed, raised.value)
    assert queue.claim(batch_size=1, lease=HOUR) == []
    monkeypatch.setattr(queue, "_not_before", time.monotonic())
    assert queue_run_dry(queue) == 1
