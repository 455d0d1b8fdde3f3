"""What all tests share. The database is a real PostgreSQL, Stripe our simulator over HTTP; nothing else is reached."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hypothesis
import pytest
from django.db import connection
from django.test import TransactionTestCase
from pytest_django import DjangoDbBlocker
from pytest_django.fixtures import Settings

from tests import copies, emptying

# The same examples every time, so that a red run can be repeated. HYPOTHESIS_PROFILE=explore looks for new ones and
# prints how to repeat a failure.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

TransactionTestCase._fixture_teardown = lambda _: emptying.empty()  # type: ignore[method-assign]

# Browsers at work, and days of trouble: other tests run the same lines. So coverage does not watch them line by line,
# which takes half as long again.
UNWATCHED = ("browser/", "simulation/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix().startswith(UNWATCHED):
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Asked for by pytest-django before it makes the test database."""
    with django_db_blocker.unblock():
        copies.use()


@pytest.fixture(scope="session")
def simulator_server() -> Iterator[Any]:
    """One local Stripe for the whole session. Tests ask for ``simulator``."""
    from marketplace.simulator import StripeSimulator

    with StripeSimulator() as server:
        yield server


@pytest.fixture
def simulator(simulator_server: Any, settings: Settings) -> Any:
    """A local Stripe without any objects or faults, which the settings point at."""
    simulator_server.reset()
    settings.STRIPE_API_BASE = simulator_server.url
    return simulator_server


@pytest.fixture
def gateway(simulator: Any) -> Iterator[Any]:
    """The real gateway, speaking HTTP with the simulator; without the allowance, whose pace is of no use here."""
    from marketplace import throttle
    from marketplace.gateway import stripe_api

    # One per process outside of tests; here the address may differ from test to test.
    throttle.gateway.cache_clear()
    yield stripe_api.connect()
    throttle.gateway.cache_clear()


@pytest.fixture
def child_environment(transactional_db: None, settings: Settings) -> dict[str, str]:
    """The environment of a program started by a test: the real settings, on the tests' database and simulator."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DJANGO_"))},
        "DJANGO_SETTINGS_MODULE": "veza.settings",
        "DATABASE_URL": database_url(),
        "PYTHONWARNINGS": "error",
    }
    if settings.STRIPE_API_BASE:
        environment["STRIPE_API_BASE"] = settings.STRIPE_API_BASE
    return environment


def database_url() -> str:
    """The address of the database that this process's tests use."""
    described = connection.get_connection_params()
    user, password = quote(described.get("user", "")), quote(described.get("password", ""))
    host, port = described.get("host", ""), described.get("port", "")
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    if host.startswith("/"):
        return f"postgres://{login}/{host}/{described['dbname']}"
    return f"postgres://{login}{host}{f':{port}' if port else ''}/{described['dbname']}"


def plain_parameters() -> dict[str, Any]:
    """The same for ``psycopg.connect``: a connection beside Django's."""
    params = connection.get_connection_params()
    return {name: params[name] for name in ("dbname", "user", "host", "port", "password") if name in params}


@pytest.fixture
def unblocked_database(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """For threads that a test starts: they may use the database too."""
    with django_db_blocker.unblock():
        yield
