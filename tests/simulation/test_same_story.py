"""A seed tells the same story every time, wherever it is told."""

import hashlib
import json
import os
import subprocess
import sys

from django.db import connection
from pytest_django import DjangoDbBlocker

from tests.simulation import clocks, run
from tests.simulation.seeds import ROOT

# Of very different profiles.
SEEDS = [3, 8, 13, 34]
TELL = """
import json, os, sys
import django
django.setup()
from django.conf import settings
settings.DATABASES["default"]["NAME"] = os.environ["TOLD_IN"]
from django.db import connections
connections["default"].settings_dict["NAME"] = os.environ["TOLD_IN"]
from tests.simulation.run import rig
from tests.simulation.test_same_story import summary
with rig() as made:
    print(json.dumps([summary(made, seed) for seed in json.loads(os.environ["SEEDS"])]))
"""


def summary(rig: run.Rig, seed: int) -> str:
    return hashlib.sha256(json.dumps(rig.live(seed).trace).encode()).hexdigest()


def test_twice_in_one_process_and_in_another(db: None, django_db_blocker: DjangoDbBlocker) -> None:
    """The other one has other hash seeds, so that the order of sets differs."""
    with django_db_blocker.unblock():
        with run.rig() as rig:
            first = [summary(rig, seed) for seed in SEEDS]
            second = [summary(rig, seed) for seed in SEEDS]
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONHASHSEED": "4",
            "TOLD_IN": connection.settings_dict["NAME"],
            "SEEDS": json.dumps(SEEDS),
        }
        told = subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-c", TELL], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
    assert first == second == json.loads(told.stdout)
    assert len(set(first)) == len(SEEDS)


def test_no_trigger_decides_by_the_time_of_its_transaction(db: None, django_db_blocker: DjangoDbBlocker) -> None:
    """The simulation moves statement_timestamp() and clock_timestamp(). Only the history's own stamps are by now()."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            AND prosrc ~* '\\m(now|transaction_timestamp)\\(|\\mcurrent_(timestamp|date|time)|\\mlocaltime'
            AND proname NOT LIKE '\\_pgh%' AND prosrc NOT LIKE '%pgh_created_at%'
            """
        )
        assert cursor.fetchall() == []


def test_time_stands_still_until_it_is_moved_but_never_twice_at_one_place(
    db: None, django_db_blocker: DjangoDbBlocker
) -> None:
    with django_db_blocker.unblock(), run.rig() as rig:
        rig.clock.start()
        with connection.cursor() as cursor:
            cursor.execute("SELECT statement_timestamp(), clock_timestamp(), pg_catalog.statement_timestamp()")
            one, same, real = cursor.fetchone()
            rig.clock.move_to(clocks.START + 3600)
            cursor.execute("SELECT statement_timestamp()")
            (later,) = cursor.fetchone()
            cursor.execute("SELECT statement_timestamp()")
            (next_one,) = cursor.fetchone()
        assert one == same != real
        assert one.timestamp() == clocks.START
        assert (later - one).total_seconds() == 3600
        assert 0 < (next_one - later).total_seconds() < 0.001
        assert rig.simulator.clock.now() == clocks.START + 3600


def test_what_is_no_part_of_a_life_keeps_its_numbers(db: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Tests that come after it in this process add permissions."""
    with django_db_blocker.unblock(), run.rig() as rig, connection.cursor() as cursor:
        rig.clear()
        cursor.execute("SELECT nextval('auth_permission_id_seq') > max(id) FROM auth_permission")
        assert cursor.fetchone() == (True,)
