"""What people were told of, in the admin: seen by all roles, sent again by those who are on call."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from marketplace.models import Notice, NoticeMessage
from tests.factories import (
    BulkRetryFactory,
    DisputeFactory,
    SellerFactory,
    SellerTransferFactory,
    UserFactory,
    WebhookEventFactory,
)

SEES = ["view_notice", "view_noticemessage", "view_sellertransfer"]
WHY = "the receiver is up again"


def signed_in(*permissions: str) -> Client:
    client = Client()
    client.force_login(UserFactory(username="olga", staff=True, permissions=[*SEES, *permissions]))
    return client


@pytest.fixture
def operator(db: None) -> Client:
    return signed_in("resend_noticemessage")


@pytest.fixture
def viewer(db: None) -> Client:
    return signed_in()


def page(name: str, row: Any) -> str:
    return reverse(f"admin:marketplace_{row._meta.model_name}_{name}", args=[row.pk])


def listed(client: Client, name: str, **query: Any) -> str:
    return client.get(reverse(f"admin:marketplace_{name}_changelist"), query).content.decode()


def message(*notices: int, **fields: Any) -> NoticeMessage:
    told = list(notices) or [Notice.objects.create(kind="event", event=WebhookEventFactory()).pk]
    row: NoticeMessage = NoticeMessage.objects.create(**{"channel": "webhook", "notices": told, **fields})
    return row


def given_up(**fields: Any) -> NoticeMessage:
    gone = {"outcome": "given_up", "ended_at": Now(), "last_error_code": "http_503", "last_error_message": "away"}
    return message(**{**gone, **fields})


# --- Seen -------------------------------------------------------------------------------------------------------------


def test_each_notice_leads_to_the_row_that_it_tells_of(viewer: Client) -> None:
    seller = SellerFactory(email="seller@example.com")
    taken = SellerTransferFactory(reversed=True, seller=seller).reversals.get()
    rows = [
        SellerTransferFactory(permanently_failed=True),
        WebhookEventFactory(given_up=True),
        BulkRetryFactory(awaiting_approval=True),
        DisputeFactory(needs_a_person=True),
        taken,
    ]
    shown = listed(viewer, "notice")
    assert Notice.objects.count() == len(rows)
    for row in rows:
        assert page("change", row) in shown
    assert page("change", seller) in shown
    only = listed(viewer, "notice", kind__exact="dispute")
    assert [page("change", row) in only for row in rows] == [False, False, False, True, False]


def test_a_notice_leads_to_its_messages_and_they_to_its_row(viewer: Client) -> None:
    transfer = SellerTransferFactory(permanently_failed=True)
    notice, other = Notice.objects.get(), message(next_retry_at=Now())
    sent = message(notice.pk, outcome="sent", ended_at=Now())
    shown = viewer.get(page("change", notice)).content.decode()
    assert page("change", sent) in shown
    assert page("change", other) not in shown
    assert page("change", transfer) in shown
    shown = viewer.get(page("change", sent)).content.decode()
    assert page("change", transfer) in shown
    assert page("resend", sent) not in shown


def test_a_digest_lists_some_and_counts_the_rest(viewer: Client) -> None:
    SellerTransferFactory(permanently_failed=True)
    first = Notice.objects.get().pk
    digest = message(*range(first, first + 60), next_retry_at=Now())
    assert "… and 10 more" in viewer.get(page("change", digest)).content.decode()
    assert ">60<" in "".join(listed(viewer, "noticemessage").split())


def test_messages_are_filtered_by_what_became_of_them(viewer: Client) -> None:
    rows = {
        "waiting": message(next_retry_at=Now()),
        "sent": message(outcome="sent", ended_at=Now()),
        "mended": message(outcome="mended", ended_at=Now()),
        "given_up": given_up(),
    }
    for state, expected in rows.items():
        shown = listed(viewer, "noticemessage", state=state)
        assert {name for name, row in rows.items() if page("change", row) in shown} == {state}, expected
    assert all(page("change", row) in listed(viewer, "noticemessage") for row in rows.values())


def test_rows_are_found_by_the_ids_that_receivers_know(viewer: Client) -> None:
    row, other = given_up(), given_up()
    told, others = (Notice.objects.get(pk=each.notices[0]) for each in (row, other))
    for name, found, left in (("noticemessage", row, other), ("notice", told, others)):
        outside = found.message_id if name == "noticemessage" else found.notice_id  # type: ignore[attr-defined]
        for text in (str(found.pk), f" {outside} "):
            shown = listed(viewer, name, q=text)
            assert (page("change", found) in shown, page("change", left) in shown) == (True, False), text
        assert page("change", found) not in listed(viewer, name, q="nothing of the kind")


@pytest.mark.parametrize(
    ("rows", "index"),
    [
        (Notice.objects.filter(kind="dispute"), "notices_of_operators"),
        (Notice.objects.filter(kind__in=["event", "transfer"]), "notices_of_operators"),
        (NoticeMessage.objects.filter(outcome="given_up"), "messages_not_sent"),
        (NoticeMessage.objects.filter(outcome=""), "messages_not_sent"),
        (NoticeMessage.objects.filter(notices__contains=[1]), "messages_by_notice"),
    ],
)
def test_what_is_rare_among_those_of_sellers_has_an_index(rows: Any, index: str, db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    # Without an order, which another index could give too: which of them is cheaper hangs on how full the tables are.
    assert index in rows.order_by().explain(costs=False)


# --- Sent again -------------------------------------------------------------------------------------------------------


def test_one_that_was_given_up_is_sent_again_with_a_reason(operator: Client) -> None:
    row = given_up()
    assert page("resend", row) in operator.get(page("change", row)).content.decode()
    asked = operator.get(page("resend", row)).content.decode()
    assert "http_503: away" in asked
    assert "This field is required" in operator.post(page("resend", row), {"reason": " "}).content.decode()
    row.refresh_from_db()
    assert row.outcome == "given_up"
    done = operator.post(page("resend", row), {"reason": WHY}, follow=True).content.decode()
    assert "It is due now" in done
    assert WHY in done
    assert "user:olga" in done
    row.refresh_from_db()
    assert (row.outcome, row.ended_at, row.next_retry_at is None) == ("", None, False)
    assert page("resend", row) not in done, "it is due"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"outcome": "sent", "ended_at": Now()}, "is sent: only one that was given up"),
        ({"outcome": "mended", "ended_at": Now()}, "is mended before: only one that was given up"),
        ({"next_retry_at": Now() - timedelta(seconds=1)}, "is due already"),
    ],
)
def test_what_needs_no_sending_is_refused_beside_the_question(fields: Any, why: str, operator: Client) -> None:
    row = message(**fields)
    assert page("resend", row) not in operator.get(page("change", row)).content.decode()
    assert why in operator.post(page("resend", row), {"reason": WHY}).content.decode()
    assert not row.history.exists()


def test_without_the_permission_nothing_is_sent(viewer: Client) -> None:
    row = given_up()
    assert page("resend", row) not in viewer.get(page("change", row)).content.decode()
    assert viewer.post(page("resend", row), {"reason": WHY}).status_code == 403
    row.refresh_from_db()
    assert row.outcome == "given_up"


def test_what_is_not_there_leads_back_to_the_list(operator: Client) -> None:
    gone = reverse("admin:marketplace_noticemessage_resend", args=[10**6])
    assert operator.post(gone, {"reason": WHY})["Location"] == reverse("admin:marketplace_noticemessage_changelist")
