"""Real worker processes on the tests' database, the simulator over a wire that can be cut, and rows for them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection
from psycopg.conninfo import make_conninfo

from tests import emptying
from tests.conftest import database_url
from tests.death.postgres import Server, in_place_of_the_tests_database, small_disk
from tests.death.processes import Nursery
from tests.death.wire import Wire

Session = psycopg.Connection[Any]
# The simulator's own, so that it can deliver events to a server of ours.
WEBHOOK_SECRET = "whsec_simulator"


def environment(address: str) -> dict[str, str]:
    """Of programs on the database at ``address``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DJANGO_"))}
    return {
        **kept,
        "DJANGO_SETTINGS_MODULE": "veza.settings",
        "DATABASE_URL": address,
        "STRIPE_WEBHOOK_SECRETS": WEBHOOK_SECRET,
        "LOG_LEVEL": "INFO",
        "LOG_FORMAT": "json",
        "PYTHONWARNINGS": "error",
    }


@pytest.fixture(scope="session")
def the_nursery(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(environment(database_url()), tmp_path_factory.mktemp("workers")) as nursery:
        yield nursery


@pytest.fixture
def workers(the_nursery: Nursery, transactional_db: None, simulator: Any) -> Iterator[Nursery]:
    """Starts workers on this test's database and simulator; none of them outlives the test."""
    the_nursery.settings = settings_for(simulator.url)
    with the_nursery.ending_what_is_left():
        yield the_nursery


def settings_for(stripe: str) -> dict[str, Any]:
    """Where Stripe is, and no allowance: what is tested here is not how fast."""
    return {"STRIPE_API_BASE": stripe, "STRIPE_MAX_REQUESTS_PER_SECOND": 0}


@pytest.fixture(scope="session")
def the_server(django_db_setup: None, django_db_blocker: Any) -> Iterator[Server]:
    """A PostgreSQL that may be killed, on a disk that may be filled where we may mount one."""
    with tempfile.TemporaryDirectory(prefix="veza-", ignore_cleanup_errors=True) as name:
        disk = Path(name) / "disk"
        disk.mkdir()
        with small_disk(disk, megabytes=320) as is_small:
            server = Server(Path(name), disk, is_small=is_small)
            server.start()
            try:
                with django_db_blocker.unblock():
                    server.create_database(like=make_conninfo(**parameters()))
                yield server
            finally:
                if server.is_running:
                    server.kill()


@pytest.fixture(scope="session")
def the_servers_nursery(the_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(environment(the_server.url), tmp_path_factory.mktemp("workers")) as nursery:
        yield nursery


@pytest.fixture
def server(the_server: Server, the_servers_nursery: Nursery, django_db_blocker: Any) -> Iterator[Server]:
    """Empty, and in the place of the tests' database for this test."""
    with django_db_blocker.unblock(), in_place_of_the_tests_database(the_server):
        emptying.empty()
        yield the_server


@pytest.fixture
def its_workers(server: Server, the_servers_nursery: Nursery, simulator: Any) -> Iterator[Nursery]:
    """As ``workers``, on the PostgreSQL that may be killed."""
    the_servers_nursery.settings = settings_for(simulator.url)
    with the_servers_nursery.ending_what_is_left():
        yield the_servers_nursery


@pytest.fixture
def wire(simulator: Any) -> Iterator[Wire]:
    with Wire(simulator.port) as wire:
        yield wire


@pytest.fixture
def wired(workers: Nursery, wire: Wire) -> Nursery:
    """The workers reach Stripe over the wire."""
    workers.settings["STRIPE_API_BASE"] = wire.url
    return workers


@pytest.fixture
def session(transactional_db: None) -> Iterator[Session]:
    """Another connection to the database than the test's own."""
    with psycopg.connect(**parameters(), autocommit=True) as connected:
        yield connected


def asked(question: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """By the test's own connection, in a transaction of its own: PostgreSQL shows its activity anew each time."""
    with connection.cursor() as cursor:
        cursor.execute(question, arguments)
        return list(cursor.fetchall())


def listening() -> int:
    """How many workers hear notifications: a connection that listens says nothing else for long."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
            " AND (query LIKE 'LISTEN %' OR query LIKE 'UNLISTEN %')"
        )
        (count,) = cursor.fetchone()
    return int(count)


def parameters() -> dict[str, Any]:
    """Of the database that this process's tests use, for a connection past Django."""
    described = connection.get_connection_params()
    return {name: described[name] for name in ("dbname", "user", "host", "port", "password") if name in described}
