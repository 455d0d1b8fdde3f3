"""Whose notices become messages when: operators and each seller by themselves, and one worker at a time."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.db.models.functions import Now

from marketplace.models import Notice, NoticeMessage
from marketplace.services import leases, notices
from tests.factories import SellerFactory, SellerTransferFactory, WebhookEventFactory
from tests.outgoing.receivers import MailServer, WebhookReceiver
from tests.services.test_confirmation import wait_until_blocked
from tests.workers.test_notices import Run, failed, hook, mend, post, rows_told, run  # noqa: F401 - fixtures

pytestmark = pytest.mark.django_db


def taken_back(email: str = "seller@example.com", **more: Any) -> Any:
    """A seller's notice."""
    SellerTransferFactory(reversed=True, seller=more.get("seller") or SellerFactory(email=email))
    return Notice.objects.latest("id")


def told_by(channel: str) -> list[list[int]]:
    return [message.notices for message in NoticeMessage.objects.filter(channel=channel).order_by("id")]


@pytest.fixture
def sellers_too(post: MailServer, settings: Any) -> MailServer:  # noqa: F811 - the fixture itself
    settings.SELLER_NOTICES = True
    return post


def test_without_a_channel_no_worker_is_woken() -> None:
    failed()
    assert leases.seconds_until_due([notices.DUE]) == [None]


def test_sellers_wake_nobody_where_they_are_told_nothing(hook: WebhookReceiver) -> None:  # noqa: F811
    taken_back()
    assert leases.seconds_until_due([notices.DUE]) == [None]


def test_what_is_not_due_yet_becomes_no_message(hook: WebhookReceiver, run: Run) -> None:  # noqa: F811
    failed()
    Notice.objects.update(due_at=Now() + timedelta(minutes=5))
    assert run() == 0
    assert not NoticeMessage.objects.exists()


def test_where_only_sellers_are_told_operators_notices_wait(sellers_too: MailServer, run: Run, settings: Any) -> None:  # noqa: F811
    settings.NOTICE_EMAILS = []
    failed()
    # However long: what is old is no news for sellers alone.
    Notice.objects.update(created_at=Now() - notices.NEWS_FOR - timedelta(hours=1))
    taken = taken_back()
    assert run() == 1
    assert told_by("seller") == [[taken.pk]]
    assert Notice.objects.get(kind="transfer").due_at is not None


def test_what_is_no_news_for_a_seller_is_for_operators(sellers_too: MailServer, run: Run) -> None:  # noqa: F811
    failed()
    taken_back()
    Notice.objects.update(created_at=Now() - notices.NEWS_FOR - timedelta(hours=1))
    assert run() == 1
    assert told_by("email") == [[Notice.objects.get(kind="transfer").pk]]
    assert told_by("seller") == []


def test_operators_that_have_to_wait_hold_no_seller_up(sellers_too: MailServer, run: Run, settings: Any) -> None:  # noqa: F811
    settings.NOTICE_DIGEST_ABOVE = 1
    failed()
    assert run() == 1
    failed()
    taken = taken_back()
    assert run() == 1
    assert told_by("seller") == [[taken.pk]]
    waiting = Notice.objects.get(due_at__isnull=False)
    assert waiting.kind == "transfer"


def test_a_seller_that_has_to_wait_holds_no_other_up(sellers_too: MailServer, run: Run, settings: Any) -> None:  # noqa: F811
    settings.NOTICE_DIGEST_ABOVE = 1
    busy, calm = SellerFactory(email="busy@example.com"), SellerFactory(email="calm@example.com")
    taken_back(seller=busy)
    assert run() == 1
    first, second = taken_back(seller=busy), taken_back(seller=calm)
    assert run() == 1
    assert NoticeMessage.objects.get(seller=calm).notices == [second.pk]
    first.refresh_from_db()
    assert first.due_at is not None


def test_what_is_due_of_others_stays_due(sellers_too: MailServer, settings: Any) -> None:
    """Too early for one seller or for the operators is too early for these alone."""
    settings.NOTICE_DIGEST_ABOVE = 0
    busy = SellerFactory(email="busy@example.com")
    failed()
    taken_back(seller=busy)
    notices.compose()
    again, row = taken_back(seller=busy), failed()
    calm = taken_back(email="calm@example.com")
    with pytest.MonkeyPatch.context() as patched:
        # Nobody else has had a turn when the first of them is put off.
        patched.setattr(notices, "_compose_for_sellers", lambda: None)
        notices.compose()
    calm.refresh_from_db()
    again.refresh_from_db()
    soon = notices._due()
    assert {calm.pk, again.pk} <= set(soon.values_list("pk", flat=True))
    assert not soon.filter(transfer=row, kind="transfer").exists()
    put_off = notices._write
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            notices, "_write", lambda to, *rows, **more: put_off(to, *rows, **more) if to[0].seller == busy else None
        )
        notices.compose()
    assert set(soon.values_list("pk", flat=True)) == {calm.pk}


def test_the_limit_is_of_each_channel(hook: WebhookReceiver, post: MailServer, run: Run) -> None:  # noqa: F811
    """Two messages of one notice are one turn."""
    for _ in range(2):
        failed()
    assert run() == 4
    last = failed()
    assert run() == 2
    assert rows_told(hook)[-1] == [last.pk]


def test_what_was_mended_meanwhile_is_not_put_off(hook: WebhookReceiver, run: Run, settings: Any) -> None:  # noqa: F811
    settings.NOTICE_DIGEST_ABOVE = 0
    failed()
    assert run() == 1
    mend(failed())
    assert run() == 0
    assert not Notice.objects.filter(due_at__isnull=False).exists()


@pytest.mark.parametrize("became", ["processed", "tried again"])
def test_an_event_that_is_in_order_again_is_not_told(became: str, hook: WebhookReceiver, run: Run) -> None:  # noqa: F811
    event = WebhookEventFactory(given_up=True)
    by = {"actor": "tester", "reason": "because"}
    if became == "processed":
        event.transition("processed", **by)
    else:
        event.change(**by, next_retry_at=Now() + timedelta(minutes=1))
    assert run() == 0
    assert not NoticeMessage.objects.exists()


def test_what_its_seller_is_told_does_not_silence_a_transfer(hook: WebhookReceiver, run: Run) -> None:  # noqa: F811
    transfer = failed()
    Notice.objects.create(kind="paid_again", transfer=transfer, seller=transfer.seller)
    assert run() == 1
    assert rows_told(hook) == [[transfer.pk]]


@pytest.mark.django_db(transaction=True)
def test_two_workers_at_the_same_time_keep_the_limit_together(
    hook: WebhookReceiver,  # noqa: F811
    unblocked_database: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed()
    standing_of, others = notices.standing_of, list[threading.Thread]()

    def compose() -> None:
        try:
            notices.compose()
        finally:
            connections.close_all()

    def meanwhile(found: Any) -> Any:
        if not others:
            others.append(threading.Thread(target=compose))
            others[0].start()
            wait_until_blocked()
        return standing_of(found)

    monkeypatch.setattr(notices, "standing_of", meanwhile)
    notices.compose()
    others[0].join(30)
    assert NoticeMessage.objects.count() == 1
