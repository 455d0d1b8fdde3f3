"""Rows that need a person are announced once: over HTTP and SMTP, through crashes, and never after they were mended."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection
from django.db.models.functions import Now
from structlog.testing import capture_logs

from marketplace import inbox
from marketplace.errors import NotAllowedNow, StaleTransition
from marketplace.models import Notice, NoticeMessage, SellerTransfer
from marketplace.services import leases, notices, transfers
from marketplace.states import TransferStatus
from marketplace.workers import reversal
from marketplace.workers.notices import NoticeQueue
from tests.conftest import plain_parameters
from tests.factories import SellerTransferFactory, WebhookEventFactory
from tests.outgoing.receivers import MailServer, WebhookReceiver, mail_server, raw_server, webhook_receiver
from tests.outgoing.test_webhook import SECRET, is_signed
from tests.workers.conftest import drain

pytestmark = pytest.mark.django_db
Run = Callable[[], int]
Outcome = NoticeMessage.Outcome
BY = {"actor": "tester", "reason": "because"}


@pytest.fixture
def run() -> Run:
    return lambda: drain(NoticeQueue())


@pytest.fixture
def hook(settings: Any) -> Iterator[WebhookReceiver]:
    """A webhook is configured, and nothing else."""
    with webhook_receiver() as receiver:
        settings.NOTICE_WEBHOOK_URL = f"{receiver.url}/hook"
        settings.NOTICE_WEBHOOK_SECRET = SECRET
        yield receiver


@pytest.fixture
def post(settings: Any) -> Iterator[MailServer]:
    """E-mail is configured, and nothing else."""
    with mail_server() as server:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
        settings.NOTICE_EMAILS = ["ops@example.com"]
        settings.SITE_URL = "https://pay.example.com"
        yield server


def failed(**more: Any) -> SellerTransfer:
    """As the program brings it there."""
    return SellerTransferFactory(permanently_failed=True, **more)


def told(hook: WebhookReceiver) -> list[Any]:
    return [json.loads(received.body) for received in hook.received]


def rows_told(hook: WebhookReceiver) -> list[list[int]]:
    return [[notice.get("transfer") for notice in message["notices"]] for message in told(hook)]


def ids_of(message: Any) -> list[str]:
    return [message["id"], *(notice["id"] for notice in message["notices"])]


def said(mail: EmailMessage, subtype: str) -> str:
    body = mail.get_body([subtype])
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


def mend(transfer: SellerTransfer) -> None:
    SellerTransfer.objects.get(pk=transfer.pk).transition(
        TransferStatus.REVERSAL_PENDING, **BY, next_retry_at=Now(), failed_leg=""
    )


def fail_again(transfer: SellerTransfer) -> None:
    SellerTransfer.objects.get(pk=transfer.pk).transition(
        TransferStatus.PERMANENTLY_FAILED,
        **BY,
        next_retry_at=None,
        failed_leg=SellerTransfer.Leg.REVERSING,
        last_error_code="not_found",
    )


def later(**by: float) -> None:
    """As though so much time had passed."""
    for model, columns in ((Notice, ("created_at", "due_at")), (NoticeMessage, ("created_at", "next_retry_at"))):
        for column in columns:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"UPDATE {model._meta.db_table} SET {column} = {column} - %s",  # noqa: S608
                    [timedelta(**by)],
                )


# --- Written once -----------------------------------------------------------------------------------------------------


def test_each_visit_is_one_notice() -> None:
    transfer = failed()
    assert Notice.objects.filter(transfer=transfer).count() == 1
    # Another error in the same visit is none.
    transfer.change(**BY, last_error_code="other")
    assert Notice.objects.filter(transfer=transfer).count() == 1
    mend(transfer)
    assert Notice.objects.filter(transfer=transfer).count() == 1
    fail_again(transfer)
    assert Notice.objects.filter(transfer=transfer).count() == 2


def test_other_states_are_none() -> None:
    for status in ("completed", "reversed", "reversal_pending", "partially_reversed", "canceled", "failed"):
        SellerTransferFactory(**{status: True})
    WebhookEventFactory(failed=True)
    WebhookEventFactory(ignored=True)
    assert not Notice.objects.exists()


def test_whoever_writes_the_state_a_notice_is_written() -> None:
    transfer = SellerTransferFactory(reversal_pending=True)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE marketplace_sellertransfer SET status = 'permanently_failed', next_retry_at = NULL WHERE id = %s",
            [transfer.pk],
        )
    assert Notice.objects.get().transfer == transfer


def test_an_event_that_is_given_up_is_one_and_so_is_the_next_time() -> None:
    event = WebhookEventFactory(given_up=True)
    assert Notice.objects.get().event == event
    replayed = inbox.replay(event_id=event.pk, **BY)
    assert (replayed.status, replayed.next_retry_at is None) == ("failed", False)
    assert Notice.objects.count() == 1
    replayed.change(**BY, next_retry_at=None)
    assert Notice.objects.count() == 2


def test_the_worker_hears_of_it(hook: WebhookReceiver) -> None:
    assert NoticeQueue().channel == "veza_notices"
    assert leases.seconds_until_due([notices.DUE]) == [None]
    failed()
    (seconds,) = leases.seconds_until_due([notices.DUE])
    assert seconds is not None
    assert seconds <= 0


def test_a_reversal_that_stripe_refuses_is_announced(hook: WebhookReceiver, run: Run, run_reversals: Run) -> None:
    transfer = SellerTransferFactory(reversal_pending=True)
    assert run_reversals() == 1
    assert run() == 1
    ((described,),) = [message["notices"] for message in told(hook)]
    assert (described["transfer"], described["code"]) == (transfer.pk, "not_found")


# --- The webhook ------------------------------------------------------------------------------------------------------


def test_what_is_posted_says_all_that_a_program_needs(hook: WebhookReceiver, run: Run) -> None:
    transfer = failed(amount=4500)
    assert run() == 1
    (message,) = told(hook)
    (described,) = message["notices"]
    notice = Notice.objects.get()
    assert (message["type"], message["count"]) == ("needs_a_person", 1)
    assert message["totals"] == [{"code": "not_found", "currency": "eur", "count": 1, "amount": 4500}]
    assert described == {
        "id": str(notice.notice_id),
        "kind": "transfer",
        "created": int(notice.created_at.timestamp()),
        "code": "not_found",
        "message": transfer.last_error_message,
        "request_id": transfer.last_error_request_id,
        "url": f"/admin/marketplace/sellertransfer/{transfer.pk}/change/",
        "transfer": transfer.pk,
        "stripe_transfer_id": transfer.stripe_transfer_id,
        "failed_leg": "reversing",
        "order": transfer.order_id,
        "seller": transfer.seller_id,
        "amount": 4500,
        "currency": "eur",
    }
    (received,) = hook.received
    assert is_signed(received.headers["Veza-Signature"], received.body, SECRET)
    assert received.headers["Veza-Message-Id"] == message["id"]
    sent = NoticeMessage.objects.get()
    assert (sent.outcome, sent.message_id) == (Outcome.SENT, UUID(message["id"]))
    assert run() == 0


def test_an_event_is_told_by_its_id_and_type(hook: WebhookReceiver, run: Run) -> None:
    event = WebhookEventFactory(given_up=True)
    assert run() == 1
    ((described,),) = [message["notices"] for message in told(hook)]
    assert described["event"] == event.stripe_event_id
    assert (described["kind"], described["type"], described["code"]) == ("event", event.type, "UnknownOrder")
    assert described["url"] == f"/admin/marketplace/webhookevent/{event.pk}/change/"


def test_nothing_personal_is_posted(hook: WebhookReceiver, run: Run) -> None:
    transfer = failed()
    assert run() == 1
    body = hook.received[0].body.decode()
    assert transfer.seller.name not in body
    assert transfer.order.buyer.username not in body


# --- Receivers that fail ----------------------------------------------------------------------------------------------


def test_what_was_not_taken_is_sent_again_under_the_same_ids(hook: WebhookReceiver, run: Run) -> None:
    failed()
    hook.answers = [500, 404]
    for _ in range(3):
        assert run() == 1
        assert run() == 0, "not before its time"
        later(hours=2)
    assert run() == 0
    assert [len(set(ids)) for ids in zip(*map(ids_of, told(hook)), strict=True)] == [1, 1]
    assert len(hook.received) == 3
    sent = NoticeMessage.objects.get()
    assert (sent.outcome, sent.retry_count, sent.last_error_code) == (Outcome.SENT, 2, "")


def test_the_error_stays_with_the_message_and_in_the_log(hook: WebhookReceiver, run: Run) -> None:
    failed()
    hook.answers = [503]
    with capture_logs() as logs:
        assert run() == 1
    message = NoticeMessage.objects.get()
    assert (message.outcome, message.last_error_code) == ("", "http_503")
    assert 50 < (message.next_retry_at - message.last_error_at).total_seconds() <= 60  # type: ignore[operator]
    (line,) = [line for line in logs if line["event"] == "notice_not_sent"]
    assert (line["code"], line["channel"], line["attempt"], line["notices"]) == ("http_503", "webhook", 1, 1)


def test_a_receiver_that_never_takes_it_is_given_up_after_three_days(hook: WebhookReceiver, run: Run) -> None:
    failed()
    hook.answers = [500] * 3
    assert run() == 1
    later(days=2, hours=23)
    assert run() == 1
    assert NoticeMessage.objects.get().outcome == ""
    later(hours=2)
    with capture_logs() as logs:
        assert run() == 1
    assert NoticeMessage.objects.get().outcome == Outcome.GIVEN_UP
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["notice_given_up"]
    later(days=9)
    assert run() == 0


def test_one_channel_that_fails_does_not_hold_the_other_up(hook: WebhookReceiver, post: MailServer, run: Run) -> None:
    failed()
    hook.answers = [500]
    assert run() == 2
    assert len(post.received) == 1
    later(hours=1)
    assert run() == 1
    assert (len(post.received), len(hook.received)) == (1, 2)


def test_a_channel_that_was_switched_off_takes_nothing(hook: WebhookReceiver, run: Run, settings: Any) -> None:
    failed()
    hook.answers = [500]
    assert run() == 1
    settings.NOTICE_WEBHOOK_URL = ""
    later(hours=1)
    assert run() == 1
    assert NoticeMessage.objects.get().last_error_code == "not_configured"
    assert len(hook.received) == 1


# --- Sent again by a person -------------------------------------------------------------------------------------------


def resend(message: NoticeMessage) -> NoticeMessage:
    return notices.resend(message_id=message.pk, actor="user:olga", reason="the receiver is up again")


def test_one_that_was_given_up_is_tried_for_three_days_more_under_the_same_ids(hook: WebhookReceiver, run: Run) -> None:
    failed()
    hook.answers = [500, 500]
    assert run() == 1
    later(days=3, hours=1)
    assert run() == 1
    message = NoticeMessage.objects.get()
    assert message.outcome == Outcome.GIVEN_UP
    hook.answers = [500]
    with capture_logs() as logs:
        again = resend(message)
    assert (again.outcome, again.retry_count, again.message_id) == ("", 0, message.message_id)
    assert [(line["message"], line["actor"]) for line in logs] == [(str(message.message_id), "user:olga")]
    assert run() == 1
    assert NoticeMessage.objects.get().outcome == "", "its three days begin anew"
    later(hours=1)
    assert run() == 1
    assert NoticeMessage.objects.get().outcome == Outcome.SENT
    assert len({tuple(ids_of(each)) for each in told(hook)}) == 1
    (entry,) = message.history.all()
    assert (entry.pgh_context["actor"], entry.pgh_context["reason"]) == ("user:olga", "the receiver is up again")
    assert entry.last_error_code == "http_500"


def test_one_that_waits_for_its_next_try_is_due_now(hook: WebhookReceiver, run: Run) -> None:
    failed()
    hook.answers = [500]
    assert run() == 1
    assert run() == 0
    resend(NoticeMessage.objects.get())
    assert run() == 1
    assert NoticeMessage.objects.get().outcome == Outcome.SENT


def test_one_that_is_being_sent_is_left_to_its_worker(hook: WebhookReceiver) -> None:
    failed()
    claimed = claim_one()
    with pytest.raises(NotAllowedNow, match="is in a worker's hands"):
        resend(claimed)
    NoticeQueue().release(claimed)
    with pytest.raises(NotAllowedNow, match="is due already"):
        resend(claimed)
    notices.settle_sent(claim_one())
    with pytest.raises(NotAllowedNow, match="is sent: only one that was given up"):
        resend(claimed)
    assert not claimed.history.exists()


@pytest.mark.django_db(transaction=True)
def test_the_worker_hears_of_one_that_is_sent_again(hook: WebhookReceiver) -> None:
    message = NoticeMessage.objects.create(
        channel="webhook", notices=[1], outcome="given_up", ended_at=Now(), last_error_code="http_503"
    )
    with psycopg.connect(**plain_parameters(), autocommit=True) as listening:
        listening.execute("LISTEN veza_notices")
        resend(message)
        assert [told.payload for told in listening.notifies(timeout=10, stop_after=1)] == ["0"]


# --- Death ------------------------------------------------------------------------------------------------------------


def claim_one() -> NoticeMessage:
    (claimed,) = notices.claim(batch_size=10, lease=timedelta(minutes=5), most_to_sellers=1)
    return claimed


def let_leases_run_out() -> None:
    NoticeMessage.objects.update(lease_expires_at=Now())


def test_dying_after_the_claim_loses_nothing(hook: WebhookReceiver, run: Run) -> None:
    failed()
    claim_one()
    assert run() == 0, "somebody holds it"
    let_leases_run_out()
    assert run() == 1
    assert len(hook.received) == 1


def test_dying_after_the_sending_sends_it_again_under_the_same_ids(
    hook: WebhookReceiver, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: NoticeMessage) -> None:
        raise KeyboardInterrupt

    failed()
    with monkeypatch.context() as dying:
        dying.setattr(notices, "settle_sent", die)
        with pytest.raises(KeyboardInterrupt):
            run()
    let_leases_run_out()
    assert run() == 1
    first, second = told(hook)
    assert ids_of(first) == ids_of(second)


def test_who_lost_the_lease_writes_nothing(hook: WebhookReceiver) -> None:
    failed()
    claimed = claim_one()
    let_leases_run_out()
    claim_one()
    for settle in (
        lambda: notices.settle_sent(claimed),
        lambda: notices.settle_mended(claimed),
        lambda: notices.settle_not_sent(claimed, "x", "y"),
    ):
        with pytest.raises(StaleTransition):
            settle()
    assert NoticeMessage.objects.get().outcome == ""


def test_a_message_that_is_given_back_is_due_as_it_was(hook: WebhookReceiver, run: Run) -> None:
    failed()
    claimed = claim_one()
    queue = NoticeQueue()
    assert not queue.is_held_back(claimed)
    queue.release(claimed)
    assert run() == 1


def test_an_error_of_ours_stays_with_its_message(hook: WebhookReceiver) -> None:
    failed()
    claimed = claim_one()
    NoticeQueue().settle_unexpected(claimed, ValueError("a bug"))
    message = NoticeMessage.objects.get()
    assert (message.last_error_code, message.last_error_message) == ("unexpected_error", "ValueError: a bug")
    assert message.lease_token is None


# --- What was mended --------------------------------------------------------------------------------------------------


def test_what_is_mended_before_is_not_told(hook: WebhookReceiver, run: Run) -> None:
    mend(failed())
    assert run() == 0
    assert not NoticeMessage.objects.exists()
    assert not Notice.objects.filter(due_at__isnull=False).exists()


def test_what_is_mended_while_the_receiver_is_away_is_not_told_either(hook: WebhookReceiver, run: Run) -> None:
    transfer = failed()
    hook.answers = [500]
    assert run() == 1
    mend(transfer)
    later(hours=1)
    with capture_logs() as logs:
        assert run() == 1
    assert len(hook.received) == 1
    assert NoticeMessage.objects.get().outcome == Outcome.MENDED
    assert "notice_mended" in [line["event"] for line in logs]


def test_what_fails_again_before_it_was_told_is_told_once(hook: WebhookReceiver, run: Run) -> None:
    transfer = failed()
    mend(transfer)
    fail_again(transfer)
    assert run() == 1
    assert rows_told(hook) == [[transfer.pk]]
    assert told(hook)[0]["notices"][0]["id"] == str(Notice.objects.order_by("id").last().notice_id)  # type: ignore[union-attr]


def test_what_fails_again_afterwards_is_told_again(hook: WebhookReceiver, run: Run) -> None:
    transfer = failed()
    assert run() == 1
    mend(transfer)
    fail_again(transfer)
    assert run() == 1
    first, second = told(hook)
    assert first["id"] != second["id"]
    assert first["notices"][0]["id"] != second["notices"][0]["id"]


def test_an_operators_retry_counts_as_mended(hook: WebhookReceiver, run: Run) -> None:
    transfer = failed()
    transfers.retry(transfer_id=transfer.pk, **BY)
    assert run() == 0


# --- Digests ----------------------------------------------------------------------------------------------------------


def test_few_are_told_one_by_one_and_many_together(hook: WebhookReceiver, run: Run) -> None:
    few = [failed().pk for _ in range(3)]
    assert run() == 3
    assert rows_told(hook) == [[pk] for pk in few]
    hook.received.clear()
    later(minutes=16)
    many = [failed().pk for _ in range(4)]
    assert run() == 1
    assert rows_told(hook) == [many]


def test_beyond_the_limit_the_interval_is_waited_for(hook: WebhookReceiver, run: Run) -> None:
    for _ in range(3):
        failed()
    assert run() == 3
    hook.received.clear()
    waiting = [failed().pk]
    assert run() == 0
    (seconds,) = leases.seconds_until_due([notices.DUE])
    assert seconds is not None
    assert 14 * 60 < seconds <= 15 * 60
    waiting.append(failed().pk)
    assert run() == 0
    later(minutes=16)
    waiting += [failed().pk, failed().pk]
    assert run() == 1
    assert rows_told(hook) == [waiting]


def test_zero_is_always_a_digest(hook: WebhookReceiver, run: Run, settings: Any) -> None:
    settings.NOTICE_DIGEST_ABOVE = 0
    first = failed().pk
    assert run() == 1
    second = [failed().pk, failed().pk]
    assert run() == 0
    later(minutes=16)
    assert run() == 1
    assert rows_told(hook) == [[first], second]


def test_a_large_digest_lists_some_and_counts_all(
    hook: WebhookReceiver, post: MailServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "LISTED", 2)
    rows = [failed(amount=1000) for _ in range(3)] + [failed(amount=700, currency="jpy")]
    WebhookEventFactory(given_up=True)
    assert run() == 2
    (message,) = told(hook)
    assert [notice["transfer"] for notice in message["notices"]] == [row.pk for row in rows[:2]]
    assert message["count"] == 5
    assert message["totals"] == [
        {"code": "not_found", "currency": "eur", "count": 3, "amount": 3000},
        {"code": "UnknownOrder", "currency": "", "count": 1, "amount": 0},
        {"code": "not_found", "currency": "jpy", "count": 1, "amount": 700},
    ]
    ((_, mail),) = post.received
    text = said(mail, "plain")
    assert mail["Subject"] == "5 rows need a person"
    assert "3 x not_found, 30.00 EUR" in text
    assert "1 x not_found, 700 JPY" in text
    assert "1 x UnknownOrder\n" in text
    assert "and 3 more: https://pay.example.com/admin/" in text


def test_more_than_a_message_holds_goes_into_the_next_one(
    hook: WebhookReceiver, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "MOST_IN_A_MESSAGE", 5)
    rows = [failed().pk for _ in range(7)]
    assert run() == 1 + 2, "two more are within the limit"
    assert sum(rows_told(hook), []) == rows  # noqa: RUF017


# --- Mail -------------------------------------------------------------------------------------------------------------


def test_the_mail_of_a_transfer(post: MailServer, run: Run) -> None:
    transfer = failed(amount=4500)
    transfer.change(**BY, last_error_message="No such transfer: <tr_1> & more", last_error_request_id="req_7")
    assert run() == 1
    ((to, mail),) = post.received
    assert to == ["ops@example.com"]
    assert mail["Subject"] == f"Transfer {transfer.pk} needs a person: not_found"
    text = said(mail, "plain")
    assert f"Transfer {transfer.pk}: 45.00 EUR, {transfer.seller.name}, order {transfer.order_id}\n" in text
    assert "The money was not taken back: the seller owes it." in text
    assert "not_found: No such transfer: <tr_1> & more\nStripe request: req_7\n" in text
    assert f"https://pay.example.com/admin/marketplace/sellertransfer/{transfer.pk}/change/\n" in text
    html = said(mail, "html")
    assert "No such transfer: &lt;tr_1&gt; &amp; more" in html


def test_the_mail_of_a_seller_who_was_not_paid(post: MailServer, run: Run) -> None:
    SellerTransferFactory(permanently_failed_sending=True)
    assert run() == 1
    ((_, mail),) = post.received
    assert "The seller was not paid." in said(mail, "plain")


def test_the_mail_of_an_event(post: MailServer, run: Run) -> None:
    event = WebhookEventFactory(given_up=True)
    assert run() == 1
    ((_, mail),) = post.received
    assert mail["Subject"] == f"Webhook event {event.stripe_event_id} needs a person: UnknownOrder"
    assert f"Webhook event {event.stripe_event_id}, {event.type}\n" in said(mail, "plain")


def test_a_name_of_several_lines_breaks_no_header(post: MailServer, run: Run) -> None:
    transfer = failed()
    transfer.change(**BY, last_error_code="a\r\nBcc: x@example.com")
    assert run() == 1
    message = NoticeMessage.objects.get()
    assert message.outcome == Outcome.SENT
    ((to, mail),) = post.received
    assert to == ["ops@example.com"]
    assert mail["Bcc"] is None


# --- In the worker ----------------------------------------------------------------------------------------------------


def test_without_a_channel_notices_wait_and_cost_nothing(gateway: Any, settings: Any) -> None:
    failed()
    names = [watched.queue.name for watched in reversal.worker(gateway)._watched]
    assert notices.WORK not in names
    settings.NOTICE_EMAILS = ["ops@example.com"]
    names = [watched.queue.name for watched in reversal.worker(gateway)._watched]
    assert names[-1] == notices.WORK
    assert Notice.objects.filter(due_at__isnull=False).count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_running_worker_tells_at_once(
    hook: WebhookReceiver, gateway: Any, unblocked_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = threading.Event()
    settle = notices.settle_sent
    monkeypatch.setattr(notices, "settle_sent", lambda claimed: (settle(claimed), settled.set()))
    made = reversal.worker(gateway)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        transfer = failed()
        assert settled.wait(30)
    finally:
        made.stop()
        thread.join(30)
    assert rows_told(hook) == [[transfer.pk]]


@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_while_a_receiver_is_spoken_to(run: Run, settings: Any) -> None:
    seen: list[Any] = []

    def look(connected: Any) -> None:
        connected.recv(65536)
        with psycopg.connect(**plain_parameters(), autocommit=True) as other:
            seen.append(
                other.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND state LIKE 'idle in transaction%'"
                ).fetchone()
            )
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with raw_server(look) as port:
        settings.NOTICE_WEBHOOK_URL = f"http://127.0.0.1:{port}/"
        settings.NOTICE_WEBHOOK_SECRET = SECRET
        failed()
        assert run() == 1
    assert seen == [(0,)]


def test_two_workers_make_one_message(hook: WebhookReceiver, run: Run) -> None:
    failed()
    notices.compose()
    notices.compose()
    assert run() == 1
    assert len(hook.received) == 1
