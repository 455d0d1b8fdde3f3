"""Sellers are told once of what was taken back and paid again: where they have an address, and nothing older."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from marketplace.models import Notice, NoticeMessage, Seller, SellerTransfer, TransferReversal
from marketplace.services import leases, notices, reversals
from marketplace.states import TransferStatus
from marketplace.workers import reversal
from marketplace.workers.notices import NoticeQueue
from tests.factories import SellerFactory, SellerTransferFactory
from tests.outgoing.receivers import MailServer
from tests.workers.conftest import drain
from tests.workers.test_notices import later, post, said  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db
Run = Callable[[], int]
BY = {"actor": "tester", "reason": "because"}


@pytest.fixture
def run() -> Run:
    return lambda: drain(NoticeQueue())


@pytest.fixture(autouse=True)
def mails(post: MailServer, settings: Any) -> MailServer:  # noqa: F811 - the fixture itself
    """Sellers are told, and operators are not."""
    settings.NOTICE_EMAILS = []
    settings.SELLER_NOTICES = True
    return post


@pytest.fixture
def seller() -> Seller:
    return SellerFactory(email="seller@example.com", name="Acme <& Sons>")


def reversed_(seller: Seller, **more: Any) -> SellerTransfer:
    return SellerTransferFactory(seller=seller, reversed=True, **more)


def test_a_reversal_that_succeeded_is_told_once(
    mails: MailServer, run: Run, run_reversals: Run, at_stripe: Any
) -> None:
    transfer = at_stripe(4500, completed=True)
    Seller.objects.update(email="seller@example.com")
    cause = TransferReversal.Cause.OPERATOR
    reversals.owe(transfer, amount=1200, cause=cause, source=None, **BY)
    assert run() == 0, "nothing has happened yet"
    assert run_reversals() == 1
    assert run() == 1
    assert run() == 0
    ((to, mail),) = mails.received
    row = transfer.reversals.get()
    assert to == ["seller@example.com"]
    assert mail["Subject"] == f"12.00 EUR of order {transfer.order_id} was taken back"
    text = said(mail, "plain")
    assert f"Order {transfer.order_id}: taken back by the marketplace\ntaken back: 12.00 EUR\n" in text
    assert row.stripe_reversal_id in text


def test_a_reversal_seen_at_stripe_is_told_as_well(seller: Seller, mails: MailServer, run: Run) -> None:
    SellerTransferFactory(seller=seller, partially_reversed=True)
    assert run() == 1
    ((_, mail),) = mails.received
    assert ": reversed at Stripe\n" in said(mail, "plain")


def test_money_that_is_paid_again_is_told_once(seller: Seller, mails: MailServer, run: Run) -> None:
    Seller.objects.update(email="")
    first = reversed_(seller)
    Seller.objects.update(email="seller@example.com")
    again = SellerTransferFactory(
        seller=seller, order=first.order, gives_back_of=first, undoes=first.reversals.get(), amount=5000
    )
    assert run() == 0
    again = SellerTransfer.objects.get(pk=again.pk)
    again.transition(TransferStatus.COMPLETED, **BY, stripe_transfer_id="tr_again", next_retry_at=None)
    assert run() == 1
    again.transition(TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=again.created_at)
    again.transition(TransferStatus.COMPLETED, **BY, next_retry_at=None)
    assert run() == 0
    ((_, mail),) = mails.received
    assert mail["Subject"] == f"50.00 EUR of order {first.order_id} was paid to you again"
    assert "paid again, a refund did not go through\npaid to you: 50.00 EUR\n" in said(mail, "plain")


def test_a_sellers_share_of_a_sale_is_no_news(seller: Seller, run: Run) -> None:
    SellerTransferFactory(seller=seller, completed=True)
    assert not Notice.objects.exists()


def test_many_are_one_mail_for_each_seller(seller: Seller, mails: MailServer, run: Run) -> None:
    for amount in (100, 200, 300, 400):
        reversed_(seller, amount=amount)
    reversed_(seller, amount=700, currency="jpy")
    reversed_(SellerFactory(email="other@example.com"))
    assert run() == 2
    by_address = {to[0]: mail for to, mail in mails.received}
    assert set(by_address) == {"seller@example.com", "other@example.com"}
    mail = by_address["seller@example.com"]
    assert mail["Subject"] == "5 changes to what you were paid"
    assert "Together: -10.00 EUR, -700 JPY" in said(mail, "plain")
    html = said(mail, "html")
    assert "Acme &lt;&amp; Sons&gt;" in html
    assert "-10.00 EUR, -700 JPY" in html


def test_what_comes_after_a_digest_waits(seller: Seller, mails: MailServer, run: Run) -> None:
    for _ in range(4):
        reversed_(seller)
    assert run() == 1
    for _ in range(4):
        reversed_(seller)
    assert run() == 0
    (seconds,) = leases.seconds_until_due([notices.DUE])
    assert seconds is not None
    assert 14 * 60 < seconds <= 15 * 60
    other = SellerFactory(email="other@example.com")
    reversed_(other)
    assert run() == 1, "others do not wait with it"
    later(minutes=16)
    assert run() == 1


def test_without_an_address_nothing_is_written(run: Run) -> None:
    reversed_(SellerFactory())
    assert not Notice.objects.exists()


def test_an_address_that_is_gone_is_sent_nothing(seller: Seller, mails: MailServer, run: Run) -> None:
    reversed_(seller)
    Seller.objects.update(email="")
    assert run() == 1
    assert mails.received == []
    assert NoticeMessage.objects.get().outcome == NoticeMessage.Outcome.MENDED


def test_switched_off_nothing_is_sent_and_nothing_is_due(
    seller: Seller, mails: MailServer, run: Run, settings: Any, gateway: Any
) -> None:
    settings.SELLER_NOTICES = False
    reversed_(seller)
    assert leases.seconds_until_due([notices.DUE]) == [None]
    assert run() == 0
    assert notices.WORK not in [watched.queue.name for watched in reversal.worker(gateway)._watched]
    settings.SELLER_NOTICES = True
    assert notices.WORK in [watched.queue.name for watched in reversal.worker(gateway)._watched]
    later(days=4)
    assert run() == 0
    assert not Notice.objects.filter(due_at__isnull=False).exists()
    assert mails.received == []


def test_switched_off_while_a_mail_waits_it_is_not_sent(
    seller: Seller, mails: MailServer, run: Run, settings: Any
) -> None:
    reversed_(seller)
    mails.answers = ["451 later"]
    assert run() == 1
    settings.SELLER_NOTICES = False
    later(hours=1)
    assert run() == 1
    assert mails.received == []


def test_operators_and_sellers_do_not_wait_for_each_other(
    seller: Seller, mails: MailServer, run: Run, settings: Any
) -> None:
    settings.NOTICE_EMAILS = ["ops@example.com"]
    for _ in range(4):
        SellerTransferFactory(permanently_failed=True)
    reversed_(seller)
    assert run() == 2
    assert sorted(to[0] for to, _ in mails.received) == ["ops@example.com", "seller@example.com"]
    assert {message.seller for message in NoticeMessage.objects.all()} == {None, seller}


def test_lines_of_older_rows_are_made_up(seller: Seller, mails: MailServer, run: Run) -> None:
    transfer = reversed_(seller)
    assert transfer.reversals.get().description == ""
    assert run() == 1
    assert f"Order {transfer.order_id}: refund to the buyer" in said(mails.received[0][1], "plain")


def test_whoever_writes_a_success_the_seller_is_told(seller: Seller) -> None:
    transfer = SellerTransferFactory(seller=seller, reversal_pending=True)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE marketplace_transferreversal SET status = 'succeeded', stripe_reversal_id = 'trr_9'"
            " WHERE transfer_id = %s",
            [transfer.pk],
        )
    assert Notice.objects.get().kind == Notice.Kind.REVERSED
    assert timedelta(0) < notices.NEWS_FOR


def test_operators_are_told_before_sellers(seller: Seller, settings: Any) -> None:
    """What waits for sellers may be thousands of mails, and longer due."""
    settings.NOTICE_EMAILS = ["ops@example.com"]
    reversed_(seller)
    notices.compose()
    SellerTransferFactory(permanently_failed=True)
    channels = []
    for _ in range(2):
        (claimed,) = notices.claim(batch_size=1, lease=timedelta(minutes=5), most_to_sellers=1)
        channels.append(claimed.channel)
    assert channels == [NoticeMessage.Channel.EMAIL, NoticeMessage.Channel.SELLER]
