"""The start page: figures that link to their rows, for who may see them."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from marketplace import throttle
from marketplace.models import RequestAllowance, TransferReversal
from marketplace.workers.heartbeat import Heartbeat
from tests.api.conftest import VIEWS
from tests.factories import RefundFactory, SellerTransferFactory, UserFactory, WebhookEventFactory
from tests.overview.rows import attempt_failed, given_back, recovered

COORDINATION = ["view_workerheartbeat", "view_circuitbreaker", "view_requestallowance"]


def client_with(*permissions: str) -> Client:
    client = Client()
    client.force_login(UserFactory(staff=True, permissions=permissions))
    return client


@pytest.fixture
def viewer(db: None) -> Client:
    return client_with(*VIEWS, "view_debt", *COORDINATION)


def cards(client: Client) -> dict[str, Any]:
    return {card.title: card for card in client.get("/admin/").context["cards"]}


def shown(client: Client, address: str) -> int:
    """How many rows the list at that address has."""
    count: int = client.get(address).context["cl"].result_count
    return count


def test_with_no_rows_it_says_so(viewer: Client) -> None:
    page = viewer.get("/admin/").content.decode()

    for said in ("nothing waits", "Nothing was owed yet.", "Nothing was tried in this time.", "No worker runs."):
        assert said in page
    assert "closed: work goes on" in page
    assert "<canvas" not in page


def test_the_cards_say_what_waits_and_link_to_it(viewer: Client) -> None:
    SellerTransferFactory(permanently_failed=True, amount=12345)
    SellerTransferFactory(permanently_failed_sending=True, amount=1, currency="usd")
    oldest = SellerTransferFactory(reversal_pending=True, currency="jpy", amount=700)
    SellerTransferFactory(completed=True)
    RefundFactory()
    WebhookEventFactory(failed=True)
    WebhookEventFactory(given_up=True)

    found = cards(viewer)

    assert {title: card.count for title, card in found.items()} == {
        "need a person": 2,
        "reversal owed": 1,
        "being sent": 0,
        "sent again later": 0,
        "refund Stripe has not answered": 1,
        "events that failed": 2,
        "debt of a seller": 1,
        "disputes need an amount": 0,
    }
    assert found["need a person"].facts == "123.45 EUR · 0.01 USD"
    assert found["events that failed"].facts == "1 needs a person · 1 is tried again"
    assert found["reversal owed"].oldest.startswith(f"transfer {oldest.pk}, due for")
    for card in found.values():
        if card.title != "debt of a seller":
            assert shown(viewer, card.href) == card.count, card.title
        if card.oldest_href:
            assert viewer.get(card.oldest_href).status_code == 200


def test_what_is_outstanding_links_to_its_reversals(viewer: Client) -> None:
    for days, count in ((0, 1), (3, 2), (40, 3)):
        for _ in range(count):
            transfer = SellerTransferFactory(reversal_pending=True, amount=100 * count)
            transfer.reversals.update(created_at=Now() - timedelta(days=days, minutes=1))
    SellerTransferFactory(permanently_failed=True, amount=5000)
    SellerTransferFactory(reversal_pending=True, currency="usd", amount=77)

    page = viewer.get("/admin/")

    euros, dollars = page.context["money"]["outstanding"]
    assert (str(euros.total), euros.count, dollars.count) == ("64.00 EUR", 7, 1)
    lines = {str(line.label): line for line in euros.by_age}
    assert [line.count for line in euros.by_age] == [2, 0, 2, 0, 3]
    assert lines["up to an hour"].amount.amount == 5100
    assert (lines["up to an hour"].waiting, lines["up to an hour"].person) == (2, 98)
    for line in [*euros.by_age, *euros.by_cause, *dollars.by_cause]:
        if line.count:
            assert shown(viewer, line.href) == line.count, line.label


def test_why_transfers_wait_links_to_them(viewer: Client) -> None:
    for _ in range(2):
        SellerTransferFactory(permanently_failed=True)
    SellerTransferFactory(reversal_pending=True)

    first, second = viewer.get("/admin/").context["reasons"]

    assert (first.code, first.count, second.code, second.count) == ("not_found", 2, "", 1)
    assert shown(viewer, first.href) == 2
    assert shown(viewer, second.href) == 1


def test_what_sellers_were_given_back_is_told_beside_what_was_recovered(viewer: Client) -> None:
    given_back(timezone.now(), amount=1200)

    page = viewer.get("/admin/")

    (row,) = page.context["money"]["outcomes"]
    assert (str(row["recovered"]), str(row["given_back"]), row["given_back_count"]) == ("50.00 EUR", "12.00 EUR", 1)
    assert "12.00 EUR" in page.content.decode()


def test_what_became_of_the_money_and_how_long_it_took(viewer: Client) -> None:
    recovered(timezone.now(), amount=4200, took=timedelta(seconds=64))
    attempt_failed(timezone.now())

    page = viewer.get("/admin/")

    (row,) = page.context["money"]["outcomes"]
    assert (str(row["recovered"]), row["recovered_count"], str(row["waiting"])) == ("42.00 EUR", 1, "50.00 EUR")
    assert shown(viewer, row["recovered_href"]) == shown(viewer, row["waiting_href"]) == 1
    hours, days = page.context["charts"]
    assert json.loads(hours["data"])["datasets"][0]["data"][-1] == 1
    assert json.loads(days["data"])["datasets"][1]["data"][-1] == 1
    assert "50.0 % of 2 attempts failed." in hours["said"]
    assert "54 s" in page.content.decode()


def test_workers_breakers_and_allowances(viewer: Client) -> None:
    Heartbeat("a worker", ["reversal"], concurrency=1).beat(in_hand=0)
    throttle.failed("transfer", channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")
    RequestAllowance.objects.create(
        endpoint="POST /v1/transfers",
        next_free_at=timezone.now(),
        spacing=timedelta(milliseconds=50),
        slowed_at=timezone.now(),
    )

    page = viewer.get("/admin/").content.decode()

    for said in ("a worker on", "alive", "open for", "20.0/s", "429", "POST /v1/transfers"):
        assert said in page


@pytest.mark.parametrize(
    ("permission", "seen", "unseen"),
    [
        ("view_sellertransfer", ["needs a person", "Why transfers wait"], ["Time to recovery", "events that failed"]),
        ("view_transferreversal", ["Time to recovery", "Outstanding by age"], ["needs a person", "Why transfers wait"]),
        ("view_refund", ["refunds Stripe has not answered"], ["needs a person", "Time to recovery"]),
        ("view_webhookevent", ["events that failed"], ["needs a person", "a worker on"]),
        ("view_debt", ["debt of a seller"], ["needs a person", "Time to recovery"]),
        ("view_workerheartbeat", ["a worker on"], ["breakers", "needs a person"]),
        ("view_circuitbreaker", ["Circuit breakers"], ["a worker on", "needs a person"]),
        ("view_requestallowance", ["Request allowances"], ["a worker on", "needs a person"]),
    ],
)
def test_each_sees_what_it_may_see(db: None, permission: str, seen: list[str], unseen: list[str]) -> None:
    SellerTransferFactory(permanently_failed=True)
    Heartbeat("a worker", ["reversal"], concurrency=1).beat(in_hand=0)

    page = client_with(permission).get("/admin/").content.decode()

    for said in seen:
        assert said in page
    for said in unseen:
        assert said not in page


def test_who_may_see_nothing_sees_nothing(db: None) -> None:
    SellerTransferFactory(permanently_failed=True)

    page = client_with().get("/admin/")

    assert page.status_code == 200
    assert page.context["cards"] == []
    assert "EUR" not in page.content.decode()


def test_what_is_late_is_told_by_the_databases_clock(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    SellerTransferFactory(reversal_pending=True, next_retry_at=Now() + timedelta(minutes=10))
    RefundFactory(next_retry_at=Now() - timedelta(minutes=10))
    right = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: right() + timedelta(hours=1))

    found = cards(viewer)

    assert found["reversal owed"].oldest == ""
    assert found["refund Stripe has not answered"].oldest.endswith("due for 10\xa0minutes")


def test_it_costs_as_many_queries_with_many_rows(viewer: Client) -> None:
    def make(count: int) -> None:
        for _ in range(count):
            SellerTransferFactory(reversal_pending=True)
            SellerTransferFactory(permanently_failed=True)
            WebhookEventFactory(failed=True)
            recovered(timezone.now())

    def cost() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get("/admin/").status_code == 200
        return len(captured)

    make(1)
    few = cost()
    make(10)
    assert cost() == few
    assert few <= 21


def test_nothing_is_counted_twice_where_a_cause_has_no_currency(viewer: Client) -> None:
    recovered(timezone.now(), cause=TransferReversal.Cause.SEEN_AT_STRIPE, refund=None)

    page = viewer.get("/admin/")

    assert [row["currency"] for row in page.context["money"]["outcomes"]] == ["EUR"]
    # What was made elsewhere was no attempt.
    assert page.context["charts"][0]["is_empty"]


def test_moments_are_of_the_zone_that_pages_show(viewer: Client) -> None:
    SellerTransferFactory(completed=True)
    listing = "/admin/marketplace/sellertransfer/?created_at_{0}_0={1:%Y-%m-%d}&created_at_{0}_1={1:%H:%M:%S}"
    now = timezone.now()
    for end, moment, count in (
        ("from", now - timedelta(hours=1), 1),
        ("from", now + timedelta(hours=1), 0),
        ("to", now - timedelta(hours=1), 0),
        ("to", now + timedelta(hours=1), 1),
    ):
        assert shown(viewer, listing.format(end, moment)) == count
    assert shown(viewer, "/admin/marketplace/sellertransfer/?created_at_from_0=nonsense&created_at_from_1=9") == 1
