"""The card on a transfer's page: what it says to whom, its buttons, and the news that the page asks for."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from marketplace.admin import why
from marketplace.explain import runbook, transfers
from marketplace.models import SellerTransfer, TransferReversal
from marketplace.states import TransferStatus
from marketplace.workers.heartbeat import Heartbeat
from tests.admin.test_operator import REASON, address
from tests.api.conftest import VIEWS
from tests.factories import DisputeFactory, SellerTransferFactory, TransferReversalFactory, UserFactory

LATER = timedelta(hours=1)


def signed_in(*permissions: str) -> Client:
    client = Client()
    client.force_login(UserFactory(username="ada", staff=True, permissions=permissions))
    return client


@pytest.fixture
def viewer(db: None) -> Client:
    return signed_in(*VIEWS)


@pytest.fixture
def operator(db: None) -> Client:
    return signed_in(*VIEWS, "retry_sellertransfer", "write_off_debt", "decline_sellertransfer")


def card(client: Client, transfer: SellerTransfer, **query: str) -> str:
    response = client.get(address("change", transfer), query)
    assert response.status_code == 200
    (found,) = re.findall(r'<section id="why".+?</section>', response.content.decode(), flags=re.DOTALL)
    return str(found)


def news(client: Client, transfer: SellerTransfer) -> dict[str, Any]:
    response = client.get(address("why", transfer))
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body


def waiting(**traits: Any) -> SellerTransfer:
    return SellerTransferFactory(**({"reversal_pending": True, "next_retry_at": timezone.now() + LATER} | traits))


@pytest.mark.parametrize("status", TransferStatus)
def test_the_card_says_why_in_every_status(status: TransferStatus, viewer: Client) -> None:
    transfer = SellerTransferFactory(**({} if status == "pending" else {status.value: True}))
    found = transfers.explain(SellerTransfer.objects.get(pk=transfer.pk))

    shown = card(viewer, transfer)

    assert found.cause in shown.replace("&#x27;", "'")
    assert f"; it is {status}</title>" in shown
    assert shown.count('class="now"') == 1
    assert transfer.seller.name.split()[0] in shown


def test_a_reversal_leads_to_the_refund_or_dispute_behind_it(viewer: Client) -> None:
    transfer = waiting()
    owed = transfer.reversals.get()
    TransferReversal.objects.filter(pk=owed.pk).update(amount=1)
    dispute = DisputeFactory(order=transfer.order)
    TransferReversalFactory(transfer=transfer, amount=1, cause="dispute", refund=None, dispute=dispute)
    shown = card(viewer, transfer)
    assert f'href="/admin/marketplace/refund/{owed.refund_id}/change/"' in shown
    assert f'href="/admin/marketplace/dispute/{dispute.pk}/change/"' in shown
    assert dispute.stripe_dispute_id in shown


def test_nothing_in_it_needs_an_inline_script(operator: Client) -> None:
    shown = card(operator, SellerTransferFactory(permanently_failed=True))

    assert "<script" not in shown
    assert not re.search(r"\son\w+=", shown)
    assert "style=" not in shown


def test_texts_of_others_are_escaped(viewer: Client) -> None:
    transfer = SellerTransferFactory(
        permanently_failed=True, last_error_message="<script>alert(1)</script>", seller__name="<b>x</b>"
    )

    shown = card(viewer, transfer)

    assert "<script>" not in shown
    assert "<b>x</b>" not in shown


# --- Buttons ----------------------------------------------------------------------------------------------------------


def test_only_what_is_possible_has_a_button(operator: Client) -> None:
    failed = SellerTransferFactory(permanently_failed=True)
    shown = card(operator, failed)

    assert f'href="{address("retry_one", failed)}"' in shown
    assert f"/admin/marketplace/debt/{failed.reversals.get().pk}/write_off" in shown
    assert address("try_now", failed) not in shown
    assert address("decline", failed) not in shown
    assert "only a payment back is declined" in shown.replace("&#x27;", "'")


def test_who_lacks_the_permission_reads_its_name_in_place_of_a_button(viewer: Client) -> None:
    failed = SellerTransferFactory(permanently_failed=True)
    shown = card(viewer, failed)

    assert address("retry_one", failed) not in shown
    assert "this needs the permission marketplace.retry_sellertransfer" in shown


def test_a_waiting_transfer_is_tried_now_with_a_reason(operator: Client) -> None:
    transfer = waiting()
    page = address("try_now", transfer)
    assert f'href="{page}"' in card(operator, transfer)

    asked = operator.get(page).content.decode()
    assert f"Try transfer {transfer.pk} now, in place of later" in asked
    assert operator.post(page, {"reason": " "}).status_code == 200
    transfer.refresh_from_db()
    assert transfer.next_retry_at is not None
    assert transfer.next_retry_at > timezone.now()

    done = operator.post(page, {"reason": REASON}, follow=True).content.decode()

    assert "It is due now. Retries that are spent stay spent." in done
    assert "tried now" in done
    assert REASON in done
    transfer.refresh_from_db()
    assert transfer.next_retry_at <= timezone.now()
    refused = operator.post(page, {"reason": REASON}).content.decode()
    assert "is due already" in refused


def test_trying_now_needs_the_permission(viewer: Client) -> None:
    transfer = waiting()

    assert viewer.post(address("try_now", transfer), {"reason": REASON}).status_code == 403

    transfer.refresh_from_db()
    assert transfer.next_retry_at is not None
    assert transfer.next_retry_at > timezone.now()


def test_trying_now_what_is_not_there_leads_back_to_the_list(operator: Client) -> None:
    transfer = SellerTransfer(pk=10**6)

    assert operator.get(address("try_now", transfer)).status_code == 302


# --- History ----------------------------------------------------------------------------------------------------------


def test_older_entries_are_shown_on_demand(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(why, "FIRST_ENTRIES", 2)
    transfer = waiting()
    for number in range(1, 4):
        transfer.change(
            actor="worker",
            reason=f"reason {number}",
            attempt=number,
            last_error_code="unknown",
            last_error_at=timezone.now() + timedelta(seconds=number),
        )

    assert "Show 2 older entries" in card(viewer, transfer)
    assert "reason 1" not in card(viewer, transfer).split("why-timeline")[1]
    everything = card(viewer, transfer, history="all").split("why-timeline")[1]
    assert "reason 1" in everything
    assert "older entr" not in everything


# --- The runbook ------------------------------------------------------------------------------------------------------


def test_the_runbooks_own_words_stand_in_the_card(viewer: Client) -> None:
    shown = card(viewer, SellerTransferFactory(permanently_failed=True))

    assert "<strong>Never:</strong> conclude that nothing was paid." in shown


@pytest.mark.parametrize("heading", runbook.entries())
def test_every_entry_is_rendered_without_links_that_lead_nowhere(heading: str) -> None:
    html = why.rendered(heading)

    assert html.startswith("<")
    assert "<a " not in html
    assert "](" not in html


def test_html_in_the_runbook_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runbook, "entries", lambda: {"x": "<img src=x> [words](somewhere.md) of it"})

    assert why.rendered("x") == "<p>&lt;img src=x&gt; words of it</p>\n"
    assert why.rendered("") == ""


# --- News -------------------------------------------------------------------------------------------------------------


def test_the_page_and_its_news_agree_until_something_is_shown_otherwise(viewer: Client) -> None:
    transfer = waiting()
    first = news(viewer, transfer)["version"]
    assert f'data-version="{first}"' in card(viewer, transfer)
    assert news(viewer, transfer)["version"] == first

    Heartbeat("both", ["reversal"], concurrency=1).beat(in_hand=0)
    second = news(viewer, transfer)["version"]
    transfer.change(actor="worker", reason="x", next_retry_at=timezone.now())
    third = news(viewer, transfer)["version"]

    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("traits", "seconds"),
    [
        ({"reversal_pending": True}, 2),
        ({"reversal_pending": True, "next_retry_at": timedelta(seconds=30)}, 2),
        ({"reversal_pending": True, "next_retry_at": LATER}, 15),
        ({"reversal_pending": True, "lease_token": "0" * 32, "lease_expires_at": LATER}, 2),
        ({"permanently_failed": True}, 0),
        ({"reversed": True}, 0),
    ],
)
def test_news_are_asked_for_as_often_as_they_can_come(traits: dict[str, Any], seconds: int, viewer: Client) -> None:
    now = timezone.now()
    made = {name: now + value if isinstance(value, timedelta) else value for name, value in traits.items()}
    transfer = SellerTransferFactory(**made)

    assert news(viewer, transfer)["seconds"] == seconds
    assert f'data-seconds="{seconds}"' in card(viewer, transfer)


def test_news_are_for_those_who_may_see_the_transfer(viewer: Client) -> None:
    transfer = SellerTransferFactory()

    assert signed_in_nobody().get(address("why", transfer)).status_code == 403
    assert Client().get(address("why", transfer)).status_code == 302
    assert viewer.get(address("why", SellerTransfer(pk=10**6))).status_code == 404


def signed_in_nobody() -> Client:
    client = Client()
    client.force_login(UserFactory(staff=True))
    return client


def test_the_page_asks_no_more_questions_for_a_longer_story(viewer: Client) -> None:
    short, long = waiting(), waiting()
    for number in range(1, 12):
        long.change(
            actor="worker",
            reason="unknown",
            attempt=number,
            last_error_code="unknown",
            last_error_at=timezone.now() + timedelta(seconds=number),
        )

    def questions(transfer: SellerTransfer) -> int:
        with CaptureQueriesContext(connection) as asked:
            card(viewer, transfer)
        return len(asked)

    questions(short)
    assert questions(short) == questions(long)
