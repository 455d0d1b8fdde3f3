"""After a test that commits, nothing of it is left, whoever forbids deleting."""

import threading

import psycopg
import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import TransactionTestCase

from marketplace.models import SellerTransfer
from tests import emptying
from tests.conftest import plain_parameters
from tests.death.processes import wait_until
from tests.factories import SellerTransferFactory


def count(table: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - Django's own
        return int(cursor.fetchone()[0])


def test_all_goes_history_too_and_what_the_migrations_made_stays(transactional_db: None) -> None:
    SellerTransferFactory(reversed=True)
    history = SellerTransfer.history.rel.related_model._meta.db_table
    permissions = Permission.objects.count()
    assert count(history) > 0
    assert permissions > 0
    emptying.empty()
    left = {table for table in connection.introspection.django_table_names() if count(table)}
    assert left == {"auth_group", "auth_group_permissions", "auth_permission", "django_content_type"}
    assert Permission.objects.count() == permissions
    # Triggers are asked again.
    SellerTransferFactory(reversed=True)
    assert count(history) > 0


def test_the_teardown_of_a_test_that_commits_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[None] = []
    monkeypatch.setattr(emptying, "empty", lambda: emptied.append(None))
    TransactionTestCase()._fixture_teardown()
    assert len(emptied) == 1


def test_who_still_writes_is_waited_for(transactional_db: None, unblocked_database: None) -> None:
    with psycopg.connect(**plain_parameters()) as late:
        late.execute("INSERT INTO django_session (session_key, session_data, expire_date) VALUES ('late', '', now())")
        emptier = threading.Thread(target=in_a_thread)
        emptier.start()
        with psycopg.connect(**plain_parameters(), autocommit=True) as asking:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
            wait_until(
                lambda: asking.execute(waits, [late.info.backend_pid]).fetchone() == (1,), "the wait", patience=10
            )
        late.commit()
        emptier.join()
    assert count("django_session") == 0


def in_a_thread() -> None:
    try:
        emptying.empty()
    finally:
        connection.close()
