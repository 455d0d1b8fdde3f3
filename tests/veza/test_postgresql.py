"""Connections of the pool that PostgreSQL has ended are not handed out, and it is not asked for that."""

import copy
import select
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.utils import ConnectionHandler

from tests.death.processes import wait_until
from veza.postgresql.base import is_alive


@pytest.fixture
def spare(transactional_db: None) -> Iterator[Any]:
    """Django's connection over a pool of its own, of one."""
    described = copy.deepcopy(connection.settings_dict)
    described["OPTIONS"]["pool"] |= {"min_size": 1, "max_size": 1}
    wrapper: Any = ConnectionHandler({"default": {}, "spare": described})["spare"]
    yield wrapper
    wrapper.close()
    wrapper.close_pool()


def backend(spare: Any) -> int:
    """Take a connection and give it back; its process at PostgreSQL."""
    spare.ensure_connection()
    pid: int = spare.connection.info.backend_pid
    spare.close()
    return pid


def of(column: str, pid: int) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {column} FROM pg_stat_activity WHERE pid = %s", [pid])  # noqa: S608 - a name of ours
        return cursor.fetchone()


def test_one_that_was_ended_meanwhile_is_replaced(spare: Any) -> None:
    ended = backend(spare)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [ended])
    wait_until(lambda: of("pid", ended) is None, "its end")
    with spare.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone()[0] != ended


def test_one_that_lives_is_asked_nothing(spare: Any) -> None:
    pid = backend(spare)
    before = of("state_change", pid)
    assert backend(spare) == pid
    assert of("state_change", pid) == before


def test_one_that_was_told_something_is_asked_and_stays(spare: Any) -> None:
    with spare.cursor() as cursor:
        cursor.execute("LISTEN anything")
        socket = spare.connection.fileno()
    pid = backend(spare)
    with connection.cursor() as cursor:
        cursor.execute("NOTIFY anything")
    wait_until(lambda: select.select([socket], [], [], 0)[0], "the notification")
    before = of("state_change", pid)
    assert backend(spare) == pid
    assert of("state_change", pid) > before


def test_one_that_was_closed_on_our_side_is_dead(spare: Any) -> None:
    spare.ensure_connection()
    spare.connection.close()
    assert not is_alive(spare.connection)
