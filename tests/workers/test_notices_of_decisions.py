"""What waits for somebody's decision is announced once too: bulk retries, and disputes in another currency."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models.functions import Now

from marketplace.models import BulkRetry, Notice
from marketplace.services import bulk_retries, bulk_steps, disputes
from tests.factories import (
    BulkRetryFactory,
    BulkRetryItemFactory,
    DisputeFactory,
    SellerTransferFactory,
    UserFactory,
    order_with_transfers,
)
from tests.outgoing.receivers import MailServer, WebhookReceiver
from tests.services.test_disputes import record
from tests.workers.test_notices import hook, ids_of, post, run, said, told  # noqa: F401 - fixtures

pytestmark = pytest.mark.django_db
Run = Callable[[], int]


@pytest.fixture(autouse=True)
def _limits(settings: Any) -> None:
    settings.BULK_RETRY_APPROVAL_ABOVE = {"": 5000}


@pytest.fixture
def ann() -> User:
    return UserFactory(username="ann", staff=True)


def started(by: User, amount: int) -> BulkRetry:
    SellerTransferFactory(permanently_failed=True, amount=amount)
    Notice.objects.all().delete()
    planned = bulk_retries.plan(criteria=bulk_retries.Criteria(), by=by, reason="the accounts are open again")
    return bulk_retries.start(bulk_retry_id=planned.pk, by=by)


def stopped_by_itself() -> None:
    """The one that is under way."""
    (claimed,) = bulk_steps.claim(batch_size=9, lease=timedelta(minutes=5))
    bulk_steps.settle_unexpected(claimed, ValueError("a bug"), actor="worker")


def approve(bulk_retry: BulkRetry) -> BulkRetry:
    by = UserFactory(staff=True)
    return bulk_retries.approve(bulk_retry_id=bulk_retry.pk, by=by, reason="agreed")


def messages(hook: WebhookReceiver) -> list[Any]:  # noqa: F811 - the fixture itself
    return [notice for message in told(hook) for notice in message["notices"]]


# --- Bulk retries -----------------------------------------------------------------------------------------------------


def test_one_that_waits_for_a_second_person_is_announced_once(
    hook: WebhookReceiver,  # noqa: F811
    run: Run,  # noqa: F811
    ann: User,
) -> None:
    bulk_retry = started(ann, 5001)
    assert run() == 1
    (described,) = messages(hook)
    assert described == {
        "id": str(Notice.objects.get().notice_id),
        "kind": "bulk_retry",
        "created": int(Notice.objects.get().created_at.timestamp()),
        "url": f"/admin/marketplace/bulkretry/{bulk_retry.pk}/change/",
        "code": "awaiting_approval",
        "message": "the accounts are open again",
        "bulk_retry": bulk_retry.pk,
        "totals": [{"status": "planned", "currency": "eur", "count": 1, "amount": 5001}],
    }
    assert told(hook)[0]["totals"] == [{"code": "awaiting_approval", "currency": "", "count": 1, "amount": 0}]
    assert "requested_by" not in hook.received[0].body.decode(), "ids and amounts, no names"
    assert run() == 0


def test_one_that_needs_nobody_is_not(ann: User) -> None:
    started(ann, 5000)
    assert not Notice.objects.exists()


@pytest.mark.parametrize("act", ["approve", "cancel"])
def test_one_that_was_decided_before_is_told_to_nobody(
    act: str,
    hook: WebhookReceiver,  # noqa: F811
    run: Run,  # noqa: F811
    ann: User,
) -> None:
    bulk_retry = started(ann, 5001)
    if act == "approve":
        approve(bulk_retry)
    else:
        bulk_retries.cancel(bulk_retry_id=bulk_retry.pk, by=ann, reason="a mistake")
    assert run() == 0
    assert not Notice.objects.filter(due_at__isnull=False).exists()


def test_one_that_stops_by_itself_is_announced_and_once_more_than_its_approval(
    hook: WebhookReceiver,  # noqa: F811
    run: Run,  # noqa: F811
    ann: User,
) -> None:
    bulk_retry = started(ann, 5001)
    assert run() == 1
    approve(bulk_retry)
    stopped_by_itself()
    bulk_retry.refresh_from_db()
    assert (bulk_retry.status, bulk_retry.stopped_by_itself) == ("stopped", True)
    assert run() == 1
    first, second = messages(hook)
    assert (second["code"], second["message"]) == ("stopped", "unexpected_error: ValueError: a bug")
    assert first["id"] != second["id"]
    # Its worker goes on to look at the results: nothing new.
    bulk_retry.change(actor="worker", reason="goes on", next_retry_at=None)
    assert run() == 0


def test_an_approval_that_was_not_told_gives_way_to_the_stop(
    hook: WebhookReceiver,  # noqa: F811
    run: Run,  # noqa: F811
    ann: User,
) -> None:
    approve(started(ann, 5001))
    stopped_by_itself()
    assert Notice.objects.count() == 2
    assert run() == 1
    assert [each["code"] for each in messages(hook)] == ["stopped"]


def test_who_stops_one_by_hand_knows_it(ann: User) -> None:
    bulk_retry = started(ann, 5000)
    bulk_retries.stop(bulk_retry_id=bulk_retry.pk, by=ann, reason="the wrong cause")
    bulk_retry.refresh_from_db()
    assert (bulk_retry.status, bulk_retry.stopped_by_itself) == ("stopped", False)
    assert not Notice.objects.exists()


def test_the_mail_of_an_approval(post: MailServer, run: Run, ann: User) -> None:  # noqa: F811
    bulk_retry = started(ann, 5001)
    assert run() == 1
    ((_, mail),) = post.received
    assert mail["Subject"] == f"Bulk retry {bulk_retry.pk} waits for a second person"
    for subtype, times in (("plain", "x"), ("html", "×")):
        text = said(mail, subtype)
        assert "ann started it, and it is over the sum for one person: another one approves, or cancels it." in text
        assert f"1 {times}" in text
        assert "50.01 EUR" in text
        assert "the accounts are open again" in text
        assert f"https://pay.example.com/admin/marketplace/bulkretry/{bulk_retry.pk}/change/" in text


def test_the_mail_of_a_stop(post: MailServer, run: Run) -> None:  # noqa: F811
    item = BulkRetryItemFactory(failed=True)
    untouched = BulkRetryItemFactory(bulk_retry=item.bulk_retry)
    Notice.objects.all().delete()
    BulkRetry.objects.filter(pk=item.bulk_retry_id).update(status="canary", started_at=Now(), next_retry_at=Now())
    stopped_by_itself()
    assert run() == 1
    ((_, mail),) = post.received
    assert mail["Subject"] == f"Bulk retry {item.bulk_retry_id} stopped by itself"
    text = said(mail, "plain")
    assert "It stopped by itself. What is not retried is as it was.\n" in text
    assert f"1 x failed again, {item.money}\n1 x not retried, {untouched.money}\n" in text
    assert "stopped: unexpected_error: ValueError: a bug\n" in text


# --- Disputes ---------------------------------------------------------------------------------------------------------


def test_a_dispute_in_another_currency_is_announced_once(hook: WebhookReceiver, run: Run) -> None:  # noqa: F811
    order = order_with_transfers((3000, 2000))
    dispute = record(order, currency="usd", amount=5500)
    record(order, "under_review", currency="usd", amount=5500, after=5)
    assert run() == 1
    (described,) = messages(hook)
    assert {name: described[name] for name in described if name not in {"id", "created", "message"}} == {
        "kind": "dispute",
        "url": f"/admin/marketplace/dispute/{dispute.pk}/change/",
        "code": "dispute_in_another_currency",
        "dispute": dispute.pk,
        "stripe_dispute_id": "dp_1",
        "order": order.pk,
        "amount": 5500,
        "currency": "usd",
    }
    assert "enter how much of the order it is" in described["message"]
    code = "dispute_in_another_currency"
    assert told(hook)[0]["totals"] == [{"code": code, "currency": "usd", "count": 1, "amount": 5500}]
    assert run() == 0


def test_a_dispute_whose_amount_was_entered_is_told_to_nobody(hook: WebhookReceiver, run: Run) -> None:  # noqa: F811
    dispute = record(order_with_transfers((3000, 2000)), currency="usd")
    disputes.enter_amount(dispute_id=dispute.pk, amount=5000, actor="user:eva", reason="all of it")
    assert run() == 0


def test_a_dispute_in_the_orders_currency_is_none() -> None:
    record(order_with_transfers((3000, 2000)))
    assert not Notice.objects.exists()


def test_the_mail_of_a_dispute(post: MailServer, run: Run) -> None:  # noqa: F811
    dispute = DisputeFactory(needs_a_person=True, amount=5500)
    assert run() == 1
    ((_, mail),) = post.received
    assert mail["Subject"] == f"Dispute {dispute.pk} needs a person: dispute_in_another_currency"
    for subtype in ("plain", "html"):
        text = said(mail, subtype)
        assert "55.00 USD" in text
        assert dispute.stripe_dispute_id in text
        assert "the platform bears it meanwhile" in text


def test_all_kinds_go_together_in_a_digest(
    hook: WebhookReceiver,  # noqa: F811
    post: MailServer,  # noqa: F811
    run: Run,  # noqa: F811
    settings: Any,
) -> None:
    settings.NOTICE_DIGEST_ABOVE = 0
    DisputeFactory(needs_a_person=True, amount=5500)
    BulkRetryFactory(awaiting_approval=True)
    SellerTransferFactory(permanently_failed=True, amount=4500)
    assert run() == 2
    (message,) = told(hook)
    assert [(each["code"], each["currency"], each["amount"]) for each in message["totals"]] == [
        ("awaiting_approval", "", 0),
        ("dispute_in_another_currency", "usd", 5500),
        ("not_found", "eur", 4500),
    ]
    assert len(set(ids_of(message))) == 4
    ((_, mail),) = post.received
    assert mail["Subject"] == "3 rows need a person"
