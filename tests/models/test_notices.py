"""What needed a person when notices were installed is told as well; a notice names its row, and no other."""

from importlib import import_module

import pytest
from django.db import IntegrityError, connection, transaction

from marketplace.models import Notice
from tests.factories import (
    BulkRetryFactory,
    DisputeFactory,
    SellerTransferFactory,
    TransferReversalFactory,
    WebhookEventFactory,
)

pytestmark = pytest.mark.django_db


def test_what_stood_before_the_migration_gets_a_notice() -> None:
    transfer, event = SellerTransferFactory(permanently_failed=True), WebhookEventFactory(given_up=True)
    SellerTransferFactory(completed=True)
    WebhookEventFactory(failed=True)
    Notice.objects.all().delete()
    with connection.cursor() as cursor:
        cursor.execute(import_module("marketplace.migrations.0011_notices").STANDING)
    assert [(notice.transfer, notice.event) for notice in Notice.objects.order_by("id")] == [
        (transfer, None),
        (None, event),
    ]
    assert not Notice.objects.filter(due_at=None).exists()
    first = Notice.objects.earliest("id")
    assert str(first) == f"notice {first.pk}"


def test_decisions_that_waited_before_the_migration_get_a_notice() -> None:
    bulk_retry, dispute = BulkRetryFactory(awaiting_approval=True), DisputeFactory(needs_a_person=True)
    BulkRetryFactory(stopped=True)
    DisputeFactory()
    Notice.objects.all().delete()
    with connection.cursor() as cursor:
        cursor.execute(import_module("marketplace.migrations.0022_more_notices").STANDING)
    assert [(notice.bulk_retry, notice.dispute) for notice in Notice.objects.order_by("id")] == [
        (bulk_retry, None),
        (None, dispute),
    ]


NAMED = {
    "transfer": {"transfer"},
    "event": {"event"},
    "bulk_retry": {"bulk_retry"},
    "dispute": {"dispute"},
    "reversed": {"reversal", "seller"},
    "paid_again": {"transfer", "seller"},
}


@pytest.mark.parametrize("kind", Notice.Kind.values)
def test_a_notice_names_its_row_and_no_other(kind: str) -> None:
    transfer = SellerTransferFactory()
    rows = {
        "transfer": transfer,
        "event": WebhookEventFactory(),
        "bulk_retry": BulkRetryFactory(),
        "dispute": DisputeFactory(),
        "reversal": TransferReversalFactory(),
        "seller": transfer.seller,
    }
    named = NAMED[kind]
    Notice.objects.create(kind=kind, **{name: rows[name] for name in named})
    for other in rows:
        # One too many, or one too few.
        wrong = named ^ {other}
        with pytest.raises(IntegrityError, match="notice_is_about_one_row"), transaction.atomic():
            Notice.objects.create(kind=kind, **{name: rows[name] for name in wrong})
