"""Test databases are copies of one that has all migrations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django.contrib.auth
import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from tests import copies
from tests.structure.sources import ROOT


def test_what_decides_how_it_looks() -> None:
    assert copies.sources() >= {
        ROOT / "requirements.lock",
        ROOT / "marketplace" / "migrations" / "0001_initial.py",
        ROOT / "marketplace" / "roles.py",
        Path(django.contrib.auth.__file__).parent / "migrations" / "0001_initial.py",
    }


def test_a_change_of_it_is_seen(tmp_path: Path) -> None:
    one, other = tmp_path / "0001_initial.py", tmp_path / "0002_more.py"
    one.write_text("a")
    before = copies.fingerprint([one])
    other.write_text("b")
    with_other = copies.fingerprint([other, one])
    one.write_text("c")
    assert len({before, with_other, copies.fingerprint([one, other])}) == 3


@pytest.mark.django_db
def test_nothing_is_left_to_migrate() -> None:
    executor = MigrationExecutor(connection)
    assert executor.migration_plan(executor.loader.graph.leaf_nodes()) == []


@pytest.fixture
def remade(monkeypatch: pytest.MonkeyPatch, django_db_setup: None, django_db_blocker: Any) -> Iterator[list[str]]:
    """Databases of these names are dropped again; making one takes no migrating."""
    monkeypatch.setattr(copies, "PREFIX", "test_of_copies_migrated_")
    monkeypatch.setattr(copies, "IN_WORK", "test_of_copies_migrating")
    monkeypatch.setitem(settings.DATABASES["default"], "TEST", {**settings.DATABASES["default"]["TEST"]})
    made: list[str] = []

    def make(_creation: Any) -> None:
        made.append(copies.IN_WORK)
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {copies.IN_WORK}")

    monkeypatch.setattr(copies, "_migrate", make)
    with django_db_blocker.unblock():
        yield made
        with connection._nodb_cursor() as cursor:
            copies._drop_others(cursor)


def those_there() -> list[str]:
    with connection._nodb_cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname ^@ 'test_of_copies_' ORDER BY 1")
        return [name for (name,) in cursor.fetchall()]


def test_it_is_made_once_until_something_changes(remade: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        copies.use()
    (first,) = those_there()
    assert settings.DATABASES["default"]["TEST"]["TEMPLATE"] == first
    assert len(remade) == 1

    monkeypatch.setattr(copies, "fingerprint", lambda _paths: "of_others")
    copies.use()
    assert those_there() == ["test_of_copies_migrated_of_others"]
    assert settings.DATABASES["default"]["TEST"]["TEMPLATE"] == "test_of_copies_migrated_of_others"


def test_what_a_killed_process_left_half_made_is_not_used(remade: list[str]) -> None:
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {copies.IN_WORK}")
    copies.use()
    (made,) = those_there()
    assert made.startswith("test_of_copies_migrated_")


def test_it_is_dropped_whoever_is_connected_still(remade: list[str]) -> None:
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {copies.IN_WORK}")
    other = psycopg.connect(**{**connection.get_connection_params(), "dbname": copies.IN_WORK})
    copies._drop(copies.IN_WORK, verbosity=0)
    other.close()
    assert those_there() == []
