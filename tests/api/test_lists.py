"""Pages, filters, search and order of the lists."""

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from tests.api.conftest import problem
from tests.factories import (
    ProductFactory,
    RefundFactory,
    SellerFactory,
    SellerTransferFactory,
    WebhookEventFactory,
    order_with_items,
    order_with_transfers,
)

PATHS = [
    f"/api/{name}/" for name in ("orders", "transfers", "refunds", "reversals", "sellers", "products", "webhook-events")
]


def ids(client: APIClient, address: str, **params: Any) -> list[int]:
    response = client.get(address, params)
    assert response.status_code == 200, response.content
    return [row["id"] for row in response.json()["results"]]


def every_page(client: APIClient, address: str, **params: Any) -> list[int]:
    found: list[int] = []
    following = client.get(address, params).json()
    while True:
        found += [row["id"] for row in following["results"]]
        if following["next"] is None:
            return found
        following = client.get(following["next"]).json()


# --- Pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordering", ["id", "-id", "created_at", "-created_at", "updated_at", "amount", "-amount"])
def test_the_pages_together_hold_each_row_once(ordering: str, staff: APIClient) -> None:
    # Equal amounts and times, which only the id tells apart.
    rows = [SellerTransferFactory(amount=amount, reversal_pending=True) for amount in (5, 5, 5, 1, 9, 5, 5)]

    found = every_page(staff, "/api/transfers/", ordering=ordering, status="reversal_pending", page_size=2)

    assert sorted(found) == sorted(row.pk for row in rows)
    name, is_falling = ordering.removeprefix("-"), ordering.startswith("-")
    by_hand = sorted(rows, key=lambda row: (getattr(row, name), row.pk), reverse=is_falling)
    assert found == [row.pk for row in by_hand]


def test_a_page_far_in_is_found_by_an_index(staff: APIClient) -> None:
    """Not by going through all rows before it."""
    for _ in range(3):
        SellerFactory()
    first = staff.get("/api/sellers/", {"page_size": 1}).json()
    with CaptureQueriesContext(connection) as captured:
        staff.get(first["next"])
    (asked,) = (
        query["sql"] for query in captured if 'FROM "marketplace_seller"' in query["sql"] and "LIMIT" in query["sql"]
    )
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN (COSTS OFF) {asked}")
        plan = "\n".join(line for (line,) in cursor.fetchall())

    assert re.search(r"Index Cond: \(\(id <= \d+\) ", plan), plan


def test_a_row_that_leaves_the_list_meanwhile_is_left_out(staff: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the question for the page's keys and that for its rows."""
    rows = [SellerTransferFactory(permanently_failed=True) for _ in range(4)]
    found = QuerySet.in_bulk

    def meanwhile(queryset: Any, keys: Any) -> Any:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE marketplace_sellertransfer SET status = 'completed' WHERE id = %s", [rows[2].pk])
        return found(queryset, keys)

    monkeypatch.setattr(QuerySet, "in_bulk", meanwhile)
    first = staff.get("/api/transfers/", {"status": "permanently_failed", "page_size": 2}).json()

    assert [row["id"] for row in first["results"]] == [rows[3].pk]
    assert ids(staff, first["next"]) == [rows[1].pk, rows[0].pk]


def test_a_row_added_meanwhile_moves_nothing(staff: APIClient) -> None:
    rows = [SellerFactory().pk for _ in range(4)]
    first = staff.get("/api/sellers/", {"page_size": 2}).json()
    SellerFactory()

    second = staff.get(first["next"]).json()

    assert [row["id"] for row in first["results"] + second["results"]] == rows[::-1]
    assert second["next"] is None


def test_pages_keep_the_filters(staff: APIClient) -> None:
    seller = SellerFactory()
    rows = [SellerTransferFactory(seller=seller, completed=True).pk for _ in range(3)]
    SellerTransferFactory(completed=True)

    assert every_page(staff, "/api/transfers/", seller=seller.pk, page_size=1) == rows[::-1]


@pytest.mark.parametrize("size", ["0", "-1", "201", "1.5", "ten", "", "²", "9" * 50])
def test_a_page_size_out_of_bounds_is_refused(size: str, staff: APIClient) -> None:
    refused = problem(staff.get("/api/orders/", {"page_size": size}), 400, "invalid-request")

    assert refused["errors"]["page_size"][0].endswith("expected a whole number from 1 to 200")


def test_the_largest_page_is_allowed(staff: APIClient) -> None:
    assert staff.get("/api/orders/", {"page_size": 200}).status_code == 200


@pytest.mark.parametrize("ordering", ["buyer__password", "status", "", "?", "-", "--id", "id,amount", "lease_token"])
def test_only_listed_orderings_are_taken(ordering: str, staff: APIClient) -> None:
    refused = problem(staff.get("/api/debts/", {"ordering": ordering}), 400, "invalid-request")

    assert "expected one of id, -id, created_at" in refused["errors"]["ordering"][0]


@pytest.mark.parametrize(
    ("path", "open_statuses", "other"),
    [
        ("/api/transfers/", ["failed", "pending", "permanently_failed", "reversal_pending"], "completed"),
        ("/api/reversals/", ["failed", "pending"], "succeeded"),
        ("/api/refunds/", ["pending", "requested", "requires_action"], "succeeded"),
    ],
)
@pytest.mark.parametrize("name", ["created_at", "updated_at", "amount"])
def test_only_open_rows_are_ordered_by_more_than_their_id(
    path: str, open_statuses: list[str], other: str, name: str, staff: APIClient
) -> None:
    for statuses in (open_statuses, open_statuses[:1]):
        assert staff.get(path, {"ordering": f"-{name}", "status": statuses}).status_code == 200
    for asked in ({}, {"status": other}, {"status": [*open_statuses, other]}):
        refused = problem(staff.get(path, {"ordering": f"-{name}", **asked}), 400, "invalid-request")
        assert refused["errors"]["ordering"] == [f"'-{name}' needs status to be of {', '.join(open_statuses)}"]
    assert staff.get(path, {"ordering": "id", "status": other}).status_code == 200


def cursor_of(*content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "%00",
        "é",
        cursor_of(),
        cursor_of("-id", 1, 1, 1),
        cursor_of("id", 1, 1),
        cursor_of("-id", "x", 1),
        cursor_of("-id", None, 1),
        cursor_of("-id", True, "1"),
        cursor_of("-id", 2**63, 1),
        cursor_of("-id", 1, 2**63),
        cursor_of("-id", 1, -1),
        cursor_of("-id", 1.5, 1),
        cursor_of("-id", [1], 1),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    ],
)
def test_a_cursor_that_we_did_not_give_is_refused(cursor: str, staff: APIClient) -> None:
    refused = problem(staff.get("/api/orders/", {"cursor": cursor}), 400, "invalid-request")

    assert list(refused["errors"]) == ["cursor"]


@pytest.mark.parametrize("value", ["yesterday", "2026-13-01", 5, "\0"])
def test_a_cursor_with_a_wrong_time_is_refused(value: Any, staff: APIClient) -> None:
    params = {"ordering": "created_at", "cursor": cursor_of("created_at", value, 1)}

    refused = problem(staff.get("/api/products/", params), 400, "invalid-request")

    assert list(refused["errors"]) == ["cursor"]


@pytest.mark.parametrize("value", ["", "a", "\0", "x" * 1000])
def test_a_cursor_of_a_name_is_only_text(value: str, staff: APIClient) -> None:
    params = {"ordering": "name", "cursor": cursor_of("name", value, 1)}

    assert staff.get("/api/products/", params).status_code == (400 if value == "\0" else 200)


# --- Filters ------------------------------------------------------------------------------------------------


def test_transfers_are_filtered(staff: APIClient) -> None:
    failed = SellerTransferFactory(permanently_failed=True)
    sending = SellerTransferFactory(permanently_failed_sending=True, currency="usd")
    completed = SellerTransferFactory(completed=True)
    path = "/api/transfers/"

    assert ids(staff, path, status="permanently_failed") == [sending.pk, failed.pk]
    assert ids(staff, path, status=["completed", "permanently_failed"]) == [completed.pk, sending.pk, failed.pk]
    assert ids(staff, path, failed_leg="sending") == [sending.pk]
    assert ids(staff, path, currency="usd") == [sending.pk]
    assert ids(staff, path, seller=completed.seller_id) == [completed.pk]
    assert ids(staff, path, order=completed.order_id) == [completed.pk]
    assert ids(staff, path, status="reversed") == []


def test_created_range(staff: APIClient) -> None:
    old, new = SellerFactory(), SellerFactory()
    old.created_at = timezone.now() - timedelta(days=2)
    old.save(update_fields=["created_at"])
    yesterday = timezone.now() - timedelta(days=1)
    # The second is further from UTC than PostgreSQL takes.
    for zone in (UTC, timezone.get_fixed_timezone(timedelta(hours=23, minutes=2))):
        then = yesterday.astimezone(zone).isoformat()
        assert ids(staff, "/api/sellers/", created_before=then) == [old.pk]
        assert ids(staff, "/api/sellers/", created_after=then) == [new.pk]


def test_orders_are_filtered_by_seller_and_buyer(staff: APIClient) -> None:
    order, other = order_with_transfers(), order_with_items()

    seller = order.items.earliest("id").seller_id
    assert ids(staff, "/api/orders/", seller=seller) == [order.pk]
    assert ids(staff, "/api/orders/", buyer=other.buyer_id) == [other.pk]
    assert ids(staff, "/api/orders/", status="paid") == [order.pk]


def test_reversals_are_filtered(staff: APIClient) -> None:
    refunded = SellerTransferFactory(reversal_pending=True).reversals.get()
    seen = SellerTransferFactory(partially_reversed=True).reversals.get()
    path = "/api/reversals/"

    assert ids(staff, path, cause="seen_at_stripe") == [seen.pk]
    assert ids(staff, path, refund=refunded.refund_id) == [refunded.pk]
    assert ids(staff, path, order=seen.transfer.order_id) == [seen.pk]
    assert ids(staff, path, seller=seen.transfer.seller_id) == [seen.pk]
    assert ids(staff, path, transfer=refunded.transfer_id) == [refunded.pk]
    assert ids(staff, path, status="succeeded") == [seen.pk]


def test_refunds_of_one_order_are_filtered_too(staff: APIClient) -> None:
    refund = RefundFactory(failed=True)
    waiting = RefundFactory(order=refund.order)
    RefundFactory(failed=True)
    path = f"/api/orders/{refund.order_id}/refunds/"

    assert ids(staff, path) == [waiting.pk, refund.pk]
    assert ids(staff, path, status="failed") == [refund.pk]
    assert ids(staff, "/api/refunds/", order=refund.order_id, status="requested") == [waiting.pk]


def test_products_and_events_are_filtered(staff: APIClient) -> None:
    sold, gone = ProductFactory(), ProductFactory(active=False)
    event = WebhookEventFactory(type="account.updated", stripe_account_id="acct_1", failed=True)
    WebhookEventFactory()

    assert ids(staff, "/api/products/", active="true") == [sold.pk]
    assert ids(staff, "/api/products/", active="false") == [gone.pk]
    assert ids(staff, "/api/products/", active="") == [gone.pk, sold.pk]
    refused = problem(staff.get("/api/products/", {"active": "yes"}), 400, "invalid-request")
    assert refused["errors"] == {"active": ["expected true or false"]}
    assert ids(staff, "/api/products/", seller=gone.seller_id) == [gone.pk]
    for params in ({"type": "account.updated"}, {"account": "acct_1"}, {"status": "failed"}):
        assert ids(staff, "/api/webhook-events/", **params) == [event.pk]
    assert ids(staff, "/api/webhook-events/", received_before="2000-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("status", "nonsense", "nonsense is not known: expected one of pending, failed, completed"),
        ("failed_leg", "both", "both is not known: expected one of sending, reversing"),
        ("seller", "x", "expected a whole number"),
        ("seller", "0", "greater than or equal to 1"),
        ("seller", str(2**63), "less than or equal to 9223372036854775807"),
        ("order", "1.5", "expected a whole number"),
        ("order", "1e400", "expected a whole number"),
        ("currency", "EUR", "expected three lower-case letters"),
        ("created_after", "soon", "expected a time such as 2026-11-01T12:00:00Z"),
        ("created_after", "0001-01-01T00:00:00+14:00", "expected a time such as 2026-11-01T12:00:00Z"),
        ("search", "x" * 256, "at most 255 characters"),
        ("search", "a\0b", "Null characters are not allowed"),
    ],
)
def test_a_filter_with_an_impossible_value_is_refused(name: str, value: str, expected: str, staff: APIClient) -> None:
    refused = problem(staff.get("/api/transfers/", {name: value}), 400, "invalid-request")

    assert list(refused["errors"]) == [name]
    assert expected in refused["errors"][name][0]


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_parameter_is_refused_by_name(path: str, staff: APIClient) -> None:
    refused = problem(staff.get(path, {"staus": "failed"}), 400, "invalid-request")

    assert refused["errors"]["staus"][0].startswith("unknown parameter: expected one of ")


# --- Search -------------------------------------------------------------------------------------------------


def test_search_finds_whole_ids_ours_and_stripes(staff: APIClient) -> None:
    transfer = SellerTransferFactory(reversed=True)
    SellerTransferFactory(reversed=True)
    reversal, order = transfer.reversals.get(), transfer.order
    refund = reversal.refund
    event = WebhookEventFactory()

    for value in (transfer.stripe_transfer_id, transfer.stripe_reversal_id, str(transfer.pk)):
        assert ids(staff, "/api/transfers/", search=value) == [transfer.pk]
    assert ids(staff, "/api/transfers/", search=transfer.stripe_transfer_id[:-1]) == []
    assert ids(staff, "/api/reversals/", search=reversal.stripe_reversal_id) == [reversal.pk]
    assert ids(staff, "/api/refunds/", search=refund.stripe_refund_id) == [refund.pk]
    assert ids(staff, "/api/orders/", search=order.stripe_charge_id) == [order.pk]
    assert ids(staff, "/api/orders/", search=order.stripe_payment_intent_id) == [order.pk]
    assert ids(staff, "/api/webhook-events/", search=event.stripe_event_id) == [event.pk]
    assert ids(staff, "/api/sellers/", search=transfer.seller.stripe_account_id) == [transfer.seller_id]
    assert ids(staff, "/api/orders/", search="9" * 30) == []


def test_search_finds_all_that_a_text_may_mean(staff: APIClient) -> None:
    first = SellerFactory(name="Cups")
    second = SellerFactory(name=f"Studio {first.pk}")

    assert ids(staff, "/api/sellers/", search=str(first.pk)) == [second.pk, first.pk]
    for number in ("0", "9" * 19, "9" * 20, "²"):
        assert ids(staff, "/api/transfers/", search=number) == []


def test_search_asks_for_each_id_by_its_index(staff: APIClient) -> None:
    """An OR of them would read all rows."""
    SellerTransferFactory(reversed=True)

    with CaptureQueriesContext(connection) as captured:
        ids(staff, "/api/transfers/", search="trr_nothing")

    asked = [query["sql"] for query in captured if "trr_nothing" in query["sql"]]
    assert len(asked) == 2
    assert not any(" OR " in sql for sql in asked)


def test_search_finds_names_by_their_parts(staff: APIClient) -> None:
    seller = SellerFactory(name="Vasiliki's Pottery")

    assert ids(staff, "/api/sellers/", search="pottery") == [seller.pk]
    assert ids(staff, "/api/sellers/", search="%") == []


# --- What it costs ------------------------------------------------------------------------------------------


def test_a_detail_costs_as_many_queries_with_many_rows(staff: APIClient, django_assert_max_num_queries: Any) -> None:
    order = order_with_items(tuple(range(100, 120)), paid=True)
    transfer = SellerTransferFactory(permanently_failed=True)

    with django_assert_max_num_queries(8):
        assert len(staff.get(f"/api/orders/{order.pk}/").json()["items"]) == 20
    # Why it is where it is takes a dozen.
    with django_assert_max_num_queries(20):
        staff.get(f"/api/transfers/{transfer.pk}/")
    with django_assert_max_num_queries(16):
        staff.get("/api/stats/")


def test_the_payloads_of_a_page_are_not_read(staff: APIClient) -> None:
    WebhookEventFactory()

    with CaptureQueriesContext(connection) as captured:
        staff.get("/api/webhook-events/")

    assert not any('"payload"' in query["sql"] for query in captured)


# --- What is shown ------------------------------------------------------------------------------------------


def test_a_transfer_is_shown_with_its_reversals_and_history(staff: APIClient) -> None:
    transfer = SellerTransferFactory(reversed=True)
    transfer.refresh_from_db()

    shown = staff.get(f"/api/transfers/{transfer.pk}/").json()

    assert shown["amount"] == shown["amount_reversed"] == 5000
    assert [row["stripe_reversal_id"] for row in shown["reversals"]] == [transfer.stripe_reversal_id]
    assert [(row["event"], row["status"]) for row in shown["history"]] == [("created", "reversed")]


def test_statistics_add_up(staff: APIClient) -> None:
    order_with_transfers((700, 300), status="reversal_pending")
    order = order_with_transfers((50,), status="partially_reversed", currency="usd")
    RefundFactory(order=order, amount=25, next_retry_at=datetime(2026, 2, 1, tzinfo=UTC))
    due = datetime(2026, 1, 1, tzinfo=UTC)
    SellerTransferFactory(amount=9, next_retry_at=due)
    WebhookEventFactory(given_up=True)

    stats = staff.get("/api/stats/").json()

    assert stats["transfers"] == [
        {"status": "pending", "failed_leg": "", "code": "", "currency": "eur", "count": 1, "amount": 9},
        {"status": "reversal_pending", "failed_leg": "", "code": "", "currency": "eur", "count": 2, "amount": 1000},
    ]
    assert stats["refunds"] == [{"status": "requested", "currency": "usd", "count": 1, "amount": 25}]
    assert stats["reversals"] == [
        {"cause": "refund", "status": "pending", "currency": "eur", "age": "1h", "count": 2, "amount": 1000}
    ]
    assert stats["recovered"] == [{"cause": "seen_at_stripe", "currency": "usd", "count": 1, "amount": 25}]
    assert stats["webhook_events_failed"] == {"retrying": 0, "person": 1}
    assert stats["oldest_due"]["sending"] == "2026-01-01T00:00:00Z"
    assert stats["oldest_due"]["reversing"] is not None
    assert stats["oldest_due"]["refunding"] == "2026-02-01T00:00:00Z"
    assert stats["oldest_due"]["events"] is None
