"""Hearing notifications; and knowing when one does not."""

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection
from structlog.testing import capture_logs

from marketplace.workers import listener as module
from marketplace.workers.listener import Listener
from tests.conftest import plain_parameters

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("unblocked_database")]
PATIENCE = 20
Start = Callable[..., Listener]


class Heard:
    def __init__(self) -> None:
        self.all: list[tuple[str, float]] = []
        self._came = threading.Semaphore(0)

    def __call__(self, channel: str, seconds: float) -> None:
        self.all.append((channel, seconds))
        self._came.release()

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._came.acquire(timeout=PATIENCE)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def start(heard: Heard) -> Iterator[Start]:
    started: list[Listener] = []

    def make(*channels: str) -> Listener:
        started.append(Listener(channels or ("veza_one", "veza_two"), on_notification=heard))
        started[-1].start()
        return started[-1]

    yield make
    for each in started:
        each.stop()
        assert not each.is_alive()


def notify(channel: str, payload: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [channel, payload])


def test_it_tells_the_channel_and_in_how_many_seconds(start: Start, heard: Heard) -> None:
    listener = start()
    heard.wait(2)
    # What was written while nobody listened.
    assert heard.all == [("veza_one", 0.0), ("veza_two", 0.0)]
    assert (listener.longest_silence, listener.has_session) == (math.inf, True)
    notify("veza_two", "1500")
    notify("veza_one", "")
    notify("veza_one", "9" * 5000)
    notify("veza_three", "1")
    notify("veza_one", "0")
    heard.wait(4)
    assert heard.all[2:] == [("veza_two", 1.5), ("veza_one", 0.0), ("veza_one", 0.0), ("veza_one", 0.0)]


def test_a_row_announces_when_it_is_due(start: Start, heard: Heard, at_stripe: Any) -> None:
    start("veza_reversals")
    heard.wait()
    transfer = at_stripe()
    heard.wait()
    assert heard.all[1] == ("veza_reversals", 0.0)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE marketplace_sellertransfer SET next_retry_at = statement_timestamp() + interval '90.5 s'"
            " WHERE id = %s",
            [transfer.pk],
        )
    heard.wait()
    assert heard.all[2] == ("veza_reversals", 90.5)


def test_where_its_own_notification_is_not_heard_it_says_so_and_workers_look_often(
    start: Start, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As through PgBouncer in transaction mode."""

    class Deaf(psycopg.Connection[Any]):
        def notifies(self, **_: Any) -> Any:
            return iter(())

    monkeypatch.setattr(module, "HEARING_SECONDS", 0.05)
    monkeypatch.setattr(module, "_connect", lambda: Deaf.connect(**plain_parameters(), autocommit=True))
    with capture_logs() as logs:
        listener = start()
        heard.wait(2)
    assert [entry["event"] for entry in logs] == ["notifications_do_not_arrive"]
    assert (listener.longest_silence, listener.has_session) == (module.DEAF_CHECK_SECONDS, False)


def test_none_listens_not_at_all(start: Start, settings: Any) -> None:
    settings.DATABASE_LISTEN_URL = "none"
    listener = start()
    listener.join(PATIENCE)
    assert listener.longest_silence == module.DEAF_CHECK_SECONDS


def test_it_listens_where_it_is_told_to(start: Start, heard: Heard, settings: Any) -> None:
    settings.DATABASE_LISTEN_URL = psycopg.conninfo.make_conninfo(**plain_parameters())
    listener = start("veza_one")
    heard.wait()
    notify("veza_one", "7")
    heard.wait()
    assert heard.all[-1] == ("veza_one", 0.007)
    # Of the way that the worker's own statements go, nothing is known.
    assert (listener.longest_silence, listener.has_session) == (math.inf, False)


def test_while_it_cannot_connect_workers_look_often(
    start: Start, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.01)
    refusals = iter(range(3))

    def refuse() -> Any:
        if next(refusals, None) is not None:
            raise psycopg.OperationalError("refused")
        return psycopg.connect(**plain_parameters(), autocommit=True)

    monkeypatch.setattr(module, "_connect", refuse)
    listener = Listener(["veza_one"], on_notification=heard)
    assert listener.longest_silence == module.DEAF_CHECK_SECONDS
    with capture_logs() as logs:
        start("veza_one")
        heard.wait()
    assert [entry["event"] for entry in logs] == ["listener_reconnects"] * 3


def test_what_comes_while_it_tries_its_ears_is_told_too(
    start: Start, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(psycopg.Connection[Any]):
        """Another notification comes first."""

        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            if str(query).startswith("NOTIFY"):
                super().execute("NOTIFY veza_one, '5000'")
            return super().execute(query, *args, **kwargs)

    monkeypatch.setattr(module, "_connect", lambda: Busy.connect(**plain_parameters(), autocommit=True))
    start("veza_one")
    heard.wait(2)
    assert sorted(heard.all) == [("veza_one", 0.0), ("veza_one", 5.0)]
