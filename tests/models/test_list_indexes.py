"""Rows that are rare among a million are found by partial indexes, whose conditions follow from what lists ask."""

from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet

from marketplace.models import Refund, SellerTransfer, TransferReversal, WebhookEvent
from tests.factories import SellerTransferFactory, WebhookEventFactory

pytestmark = pytest.mark.django_db

INDEXES = [
    "transfers_with_error",
    "transfers_of_rare_status",
    "reversals_canceled",
    "refunds_of_no_avail",
    "events_by_account",
]


@pytest.mark.parametrize(
    ("rows", "index"),
    [
        (SellerTransfer.objects.filter(last_error_code="card_declined"), "transfers_with_error"),
        (SellerTransfer.objects.filter(status="canceled"), "transfers_of_rare_status"),
        (SellerTransfer.objects.filter(status__in=["partially_reversed"]), "transfers_of_rare_status"),
        (TransferReversal.objects.filter(status="canceled"), "reversals_canceled"),
        (Refund.objects.filter(status="failed"), "refunds_of_no_avail"),
        (Refund.objects.filter(status__in=["canceled"]), "refunds_of_no_avail"),
        (WebhookEvent.objects.filter(stripe_account_id="acct_1"), "events_by_account"),
    ],
)
def test_a_list_of_what_is_rare_has_an_index(rows: QuerySet[Any], index: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")

    # Without an order, which another index could give too: which of them is cheaper hangs on how full the tables are.
    assert index in rows.order_by().explain(costs=False)


def entries() -> dict[str, int]:
    """How many rows are in each index, by its own condition."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT indexrelid::regclass::text, indrelid::regclass::text, pg_get_expr(indpred, indrelid)
            FROM pg_index WHERE indexrelid::regclass::text = ANY (%s)
            """,
            [INDEXES],
        )
        found = cursor.fetchall()
        counts = {}
        for name, table, condition in found:
            cursor.execute(f"SELECT count(*) FROM {table} WHERE {condition}")  # noqa: S608 - PostgreSQL said it
            counts[name] = cursor.fetchone()[0]
    return counts


def test_what_goes_its_usual_way_is_in_none_of_them() -> None:
    """So refunds and claims write as much as without them."""
    for status in ("completed", "reversal_pending", "reversed"):
        SellerTransferFactory(**{status: True})
    WebhookEventFactory()

    assert entries() == dict.fromkeys(INDEXES, 0)

    SellerTransferFactory(permanently_failed=True)
    SellerTransferFactory(canceled=True)
    assert entries()["transfers_with_error"] == entries()["transfers_of_rare_status"] == 1
