"""One time for everybody: Stripe's clock, the database's and what each host believes, moved by hand alone."""

import datetime as dt
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import stripe._webhook
from django.db import connection
from django.utils import timezone

from marketplace.services import outcomes

# A Friday morning, far from anything.
START = 1_800_000_000
MICROSECONDS = 1_000_000

# The program asks for the time by functions that are looked up by name. A schema before pg_catalog in the search path
# answers for it, without a line of the program being touched.
#
# Each statement is one microsecond later than the one before: no two happen at the same time, as on a real clock, and
# yet every run of a seed sees the same times. Within a statement, triggers included, the time stands still.
SCHEMA = """
    DROP SCHEMA IF EXISTS simclock CASCADE;
    CREATE SCHEMA simclock;
    CREATE SEQUENCE simclock.micros AS bigint MINVALUE 0 START 0;
    CREATE SEQUENCE simclock.tokens AS bigint;
    CREATE FUNCTION simclock.statement_timestamp() RETURNS timestamptz LANGUAGE plpgsql STABLE AS $body$
    DECLARE
        statement text := pg_catalog.statement_timestamp()::text;
    BEGIN
        IF current_setting('simclock.statement', true) IS DISTINCT FROM statement THEN
            PERFORM set_config('simclock.statement', statement, false);
            PERFORM set_config('simclock.now', nextval('simclock.micros')::text, false);
        END IF;
        RETURN 'epoch'::timestamptz + current_setting('simclock.now')::bigint * interval '1 microsecond';
    END $body$;
    CREATE FUNCTION simclock.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
        AS 'SELECT simclock.statement_timestamp()';
    CREATE FUNCTION simclock.now() RETURNS timestamptz LANGUAGE sql STABLE
        AS 'SELECT simclock.statement_timestamp()';
    CREATE FUNCTION simclock.gen_random_uuid() RETURNS uuid LANGUAGE sql VOLATILE
        AS 'SELECT md5(nextval(''simclock.tokens'')::text)::uuid';
"""
SEARCH_PATH = "simclock, public, pg_catalog"


def install() -> None:
    """Give the database its second clock. Nobody sees it who does not ask by the search path."""
    with connection.cursor() as cursor:
        cursor.execute(SCHEMA)


def remove() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS simclock CASCADE")


class Clock:
    """Seconds since 1970, for Stripe and the database alike. Stands still until it is moved."""

    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator
        self.now = float(START)

    def start(self) -> None:
        self.now = float(START)
        self._simulator.clock.freeze(self.now)
        self._tell_database()

    def move_to(self, moment: float) -> None:
        """Everything that Stripe was to do meanwhile is done."""
        if moment > self.now:
            self.now = moment
            self._simulator.clock.move_to(moment)
            self._tell_database()

    def _tell_database(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT setval('simclock.micros', %s, false)", [round(self.now * MICROSECONDS)])

    @property
    def elapsed(self) -> float:
        return self.now - START


def told_by_database(cursor: Any) -> dt.datetime:
    """What the next statement of the program would be told, without moving on."""
    cursor.execute("SELECT last_value FROM simclock.micros")
    return dt.datetime.fromtimestamp(0, tz=dt.UTC) + dt.timedelta(microseconds=cursor.fetchone()[0])


@contextmanager
def hosts(
    *,
    monotonic: Callable[[], float],
    since_boot: Callable[[], float],
    wall: Callable[[], float],
    sleep: Callable[[float], None],
    seed: int,
) -> Iterator[None]:
    """Everything that a program asks its host for: times, sleep, chance, unique ids; as the caller says."""
    chance = random.Random(f"host {seed}")
    clock = SimpleNamespace(
        monotonic=monotonic,
        perf_counter=monotonic,
        sleep=sleep,
        time=wall,
        # While the machine is suspended this one goes on, and the monotonic one does not.
        CLOCK_BOOTTIME=7,
        clock_gettime=lambda _which: since_boot(),
    )
    ids = SimpleNamespace(**{name: getattr(os, name) for name in ("name", "getpid")}, urandom=chance.randbytes)
    with ExitStack() as stack:
        for module in timed_modules():
            stack.enter_context(patch.object(module, "time", clock))
        stack.enter_context(patch.object(stripe._webhook, "time", clock))
        stack.enter_context(patch.object(timezone, "now", lambda: dt.datetime.fromtimestamp(wall(), tz=dt.UTC)))
        stack.enter_context(patch.object(outcomes, "random", SimpleNamespace(random=chance.random)))
        stack.enter_context(patch.object(uuid, "os", ids))
        yield


def timed_modules() -> list[Any]:
    """Those of the program that ask for the time by ``time``. Stripe's side has a clock of its own."""
    return [
        module
        for name, module in sorted(sys.modules.items())
        if name.startswith("marketplace.")
        and not name.startswith("marketplace.simulator")
        and getattr(module, "time", None) is time
    ]
