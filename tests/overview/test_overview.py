"""The figures of the overview: what is open, what happened, who works."""

from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from marketplace import overview, selectors, throttle
from marketplace.models import RequestAllowance, SellerTransfer, TransferReversal, WorkerHeartbeat
from marketplace.states import RefundStatus
from marketplace.workers.heartbeat import Heartbeat
from tests.factories import (
    DebtEntryFactory,
    RefundFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    WebhookEventFactory,
)
from tests.overview.rows import attempt_failed, given_back, recovered, settled

pytestmark = pytest.mark.django_db
Cause = TransferReversal.Cause


def owe(*, age: timedelta, amount: int = 1000, currency: str = "eur", **fields: object) -> TransferReversal:
    made: TransferReversal = TransferReversalFactory(
        transfer=SellerTransferFactory(reversal_pending=True, amount=5000, currency=currency, reversal=False),
        amount=amount,
        **fields,
    )
    TransferReversal.objects.filter(pk=made.pk).update(created_at=Now() - age)
    return made


def test_an_empty_installation() -> None:
    found = overview.everything(timezone.now())

    assert found.owed == found.waiting == found.refunds == found.outcomes == found.workers == found.allowances == []
    assert found.events == {"retrying": 0, "person": 0}
    assert found.longest == dict.fromkeys(selectors.QUEUES)
    assert found.lately.recovery_time_of_hours() == overview.RecoveryTime(count=0, p50=None, p95=None)
    assert [(each.succeeded, each.failed) for each in found.lately.attempts_by_hour()] == [(0, 0)] * 24
    assert [breaker.opened_at for breaker in found.breakers] == [None] * 3


def test_what_is_owed_by_currency_cause_status_and_age() -> None:
    for age in (timedelta(minutes=59), timedelta(hours=23), timedelta(days=6), timedelta(days=29), timedelta(days=31)):
        owe(age=age)
    owe(age=timedelta(minutes=1), currency="jpy", amount=700)
    owe(age=timedelta(minutes=1), cause=Cause.OPERATOR, refund=None)
    owe(age=timedelta(minutes=1), failed=True, amount=900)
    # Of what is not wanted any more, and of what was settled, nothing is owed.
    owe(age=timedelta(minutes=1), currency="usd", amount=500, unwanted_amount=200)
    owe(age=timedelta(minutes=1), currency="gbp", succeeded=True)
    owe(age=timedelta(minutes=1), currency="gbp", canceled=True)
    # Stripe gave it up, and another is in its place.
    owe(age=timedelta(minutes=1), currency="gbp", failed=True, stripe_status="canceled")

    found = {(o.currency, o.cause, o.status, o.age): (o.count, o.amount) for o in overview.owed()}

    assert found == {
        **{("eur", "refund", "pending", age): (1, 1000) for age in overview.AGES},
        ("jpy", "refund", "pending", "1h"): (1, 700),
        ("eur", "operator", "pending", "1h"): (1, 1000),
        ("eur", "refund", "failed", "1h"): (1, 900),
        ("usd", "refund", "pending", "1h"): (1, 300),
    }


def test_the_rest_of_a_debt_is_as_old_as_the_whole() -> None:
    first = owe(age=timedelta(days=40), canceled=True)
    rest = TransferReversalFactory(transfer=first.transfer, refund=first.refund, amount=600, in_place_of=first)

    (found,) = overview.owed()

    assert (found.age, found.amount) == ("older", rest.amount)


def test_transfers_that_wait_by_status_and_error() -> None:
    SellerTransferFactory(amount=100)
    SellerTransferFactory(failed=True, amount=200)
    SellerTransferFactory(reversal_pending=True, amount=300)
    SellerTransferFactory(permanently_failed=True, amount=400)
    SellerTransferFactory(permanently_failed_sending=True, amount=500)
    for status in ("completed", "reversed", "partially_reversed"):
        SellerTransferFactory(**{status: True})

    found = {(w.status, w.failed_leg, w.code): (w.count, w.amount) for w in overview.waiting()}

    assert found == {
        ("pending", "", ""): (1, 100),
        ("failed", "", "unknown"): (1, 200),
        ("reversal_pending", "", ""): (1, 300),
        ("permanently_failed", "reversing", "not_found"): (1, 400),
        ("permanently_failed", "sending", "account_invalid"): (1, 500),
    }


def test_refunds_and_events_that_are_open() -> None:
    RefundFactory(amount=100)
    RefundFactory(pending=True, amount=200)
    RefundFactory(succeeded=True)
    WebhookEventFactory(failed=True)
    WebhookEventFactory(given_up=True)
    WebhookEventFactory(given_up=True)
    WebhookEventFactory()

    assert [(r.status, r.count, r.amount) for r in overview.open_refunds()] == [
        (RefundStatus.PENDING, 1, 200),
        (RefundStatus.REQUESTED, 1, 100),
    ]
    assert overview.failed_events() == {"retrying": 1, "person": 2}


def test_the_row_that_waits_the_longest() -> None:
    SellerTransferFactory(reversal_pending=True, next_retry_at=timezone.now() - timedelta(hours=1))
    oldest = SellerTransferFactory(reversal_pending=True, next_retry_at=timezone.now() - timedelta(hours=2))

    found = overview.longest_waiting("reversing")

    assert found is not None
    assert found == (SellerTransfer.objects.get(pk=oldest.pk), oldest.next_retry_at)
    assert overview.longest_waiting("sending") is None


def test_what_became_of_the_money() -> None:
    now = timezone.now()
    recovered(now - timedelta(days=2), amount=1000)
    recovered(now - timedelta(days=29), amount=500)
    recovered(now - timedelta(days=31), amount=9999)
    recovered(now - timedelta(days=2), amount=70, currency="jpy")
    settled(now - timedelta(days=2), amount=300)
    settled(now - timedelta(days=2), amount=200, kind="written_off")
    attempt_failed(now - timedelta(days=2))

    found = {each.currency: each for each in overview.everything(now).outcomes}

    assert (found["eur"].recovered, found["eur"].recovered_count) == (1500, 2)
    assert (found["jpy"].recovered, found["jpy"].recovered_count) == (70, 1)
    assert (found["eur"].settled, found["eur"].written_off) == (300, 200)
    # The debts, of which that was settled, and the one that was tried in vain.
    assert (found["eur"].person_count, found["eur"].waiting_count) == (2, 1)
    assert found["eur"].needs_person == 2 * 5000 - 500
    assert found["eur"].waiting == 5000


def test_what_sellers_were_given_back() -> None:
    now = timezone.now()
    given_back(now - timedelta(days=2), amount=1000)
    given_back(now - timedelta(days=29), amount=500)
    given_back(now - timedelta(days=31), amount=4000)
    given_back(now - timedelta(days=2), amount=70, currency="jpy")
    # Not sent yet, or declined; and what had never been taken, but kept back before it was sent.
    given_back(now, completed=False)
    given_back(now, completed=False, canceled=True, declined=True)
    given_back(now, undoes=None, gives_back_of=SellerTransferFactory(completed=True, amount=100, amount_kept_back=5000))

    found = {each.currency: each for each in overview.everything(now).outcomes}

    assert (found["eur"].given_back, found["eur"].given_back_count) == (1500, 2)
    assert (found["jpy"].given_back, found["jpy"].given_back_count) == (70, 1)


def test_what_is_given_back_counts_when_it_was_first_sent() -> None:
    now = timezone.now()
    again = given_back(now - timedelta(days=31), amount=1000)
    again.transition("reversal_pending", reason="refunded", actor="test", next_retry_at=now)

    assert overview.given_back(now) == []


def test_what_was_kept_of_it_for_debts_is_given_back_too() -> None:
    """For it is among what was settled."""
    undone = recovered(timezone.now())
    seller = undone.transfer.seller
    again = SellerTransferFactory(
        order=undone.transfer.order,
        seller=seller,
        gives_back_of=undone.transfer,
        undoes=undone,
        canceled=True,
        amount=0,
        amount_netted=300,
    )
    owing = SellerTransferFactory(permanently_failed=True, reversal=False, seller=seller)
    DebtEntryFactory(
        kind="netted", amount=300, transfer=again, reversal=TransferReversalFactory(failed=True, transfer=owing)
    )

    assert [(each.count, each.amount) for each in overview.given_back(timezone.now())] == [(1, 300)]


def test_attempts_by_hour_and_day() -> None:
    now = timezone.now()
    recovered(now - timedelta(hours=3))
    recovered(now - timedelta(hours=3), cause=Cause.SEEN_AT_STRIPE, refund=None)
    attempt_failed(now - timedelta(hours=3))
    attempt_failed(now)
    recovered(now - timedelta(days=3))

    lately = overview.lately(now)

    hours = lately.attempts_by_hour()
    assert (len(hours), hours[-1].at) == (24, overview.hour_of(now))
    assert [(each.succeeded, each.failed) for each in hours if each.succeeded or each.failed] == [(1, 1), (0, 1)]
    assert hours[-4].succeeded == hours[-4].failed == hours[-1].failed == 1
    days = lately.attempts_by_day()
    assert (len(days), days[-1].at) == (30, overview.day_of(now))
    assert sum(each.succeeded for each in days) == 2
    assert days[-4].succeeded == 1
    assert lately.recovery_time_of_hours().count == 1
    assert lately.recovery_time_of_days().count == 2


def test_workers_breakers_and_allowances() -> None:
    for name in ("alive", "dead"):
        Heartbeat(name, ["reversal"], concurrency=16).beat(in_hand=3)
    dead = WorkerHeartbeat.objects.get(identity__startswith="dead")
    WorkerHeartbeat.objects.filter(pk=dead.pk).update(seen_at=Now() - timedelta(minutes=5))
    throttle.failed("transfer", channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")
    spacing = timedelta(milliseconds=50)
    RequestAllowance.objects.create(endpoint="GET /v1/balance", next_free_at=timezone.now(), spacing=spacing)

    assert [(w.identity.split()[0], w.is_alive) for w in overview.workers()] == [("alive", True), ("dead", False)]
    assert overview.workers()[1].seen_shown == "5 min"
    assert {b.work: (b.opened_at is not None, b.last_error) for b in overview.breakers()} == {
        "transfer": (True, "503"),
        "reversal": (False, ""),
        "refund": (False, ""),
    }
    assert [(a.endpoint, a.per_second) for a in overview.allowances()] == [("GET /v1/balance", 20)]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"),
        (0.0421, "0.042 s"),
        (9.96, "10 s"),
        (45.2, "45 s"),
        (119, "119 s"),
        (120, "2 min"),
        (5400, "90 min"),
        (7200, "2 h"),
        (86_400, "24 h"),
        (200_000, "2.31 d"),
    ],
)
def test_times_for_people(seconds: float | None, said: str) -> None:
    assert overview.spoken(seconds) == said
