"""What migrations make of rows that are there already."""

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from tests.factories import TransferReversalFactory

pytestmark = pytest.mark.django_db(transaction=True)


def migrate(to: str = "") -> None:
    executor = MigrationExecutor(connection)
    executor.migrate([("marketplace", to)] if to else executor.loader.graph.leaf_nodes())


def test_what_is_no_longer_owed_already_is_so_from_then_on() -> None:
    unwanted, wanted = TransferReversalFactory(amount=1000, unwanted_amount=300), TransferReversalFactory()
    try:
        migrate("0028_reconciliation_roles")
    finally:
        migrate()
    for row in (unwanted, wanted):
        row.refresh_from_db()
    assert unwanted.unwanted_at is not None
    assert wanted.unwanted_at is None
