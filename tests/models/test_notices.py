"""What needed a person when notices were installed is told as well."""

from importlib import import_module

import pytest
from django.db import connection

from marketplace.models import Notice
from tests.factories import SellerTransferFactory, WebhookEventFactory

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
