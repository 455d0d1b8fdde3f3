from collections.abc import Iterator
from typing import Any

import pytest
from pytest_django import DjangoDbBlocker

from tests.simulation import run


@pytest.fixture(scope="module")
def db(django_db_setup: Any) -> None:
    """In place of pytest-django's, which puts a transaction around each test: here everything is really committed.

    By its name pytest-django knows that the tests' database is wanted.
    """


@pytest.fixture(scope="module")
def rig(db: None, django_db_blocker: DjangoDbBlocker) -> Iterator[run.Rig]:
    """All that is committed is gone afterwards."""
    with django_db_blocker.unblock(), run.rig() as made:
        yield made
