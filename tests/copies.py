"""Test databases are copies of one that has all migrations, made once and kept on the server: migrating takes ten
seconds of each process, copying a tenth of one.
"""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from tests.structure.sources import ROOT, imported, is_of
from veza.database import EMBEDDED_ENGINE

PREFIX = "test_veza_migrated_"
# Not whole yet; what a killed process left of it is thrown away.
IN_WORK = "test_veza_migrating"


def use() -> None:
    """What this process's ``create_test_db`` makes from now on is a copy."""
    name = PREFIX + fingerprint(sources())
    creation = connection.creation
    with connection._nodb_cursor() as cursor:
        if connection.settings_dict["ENGINE"] == EMBEDDED_ENGINE:
            _do_not_wait_for_the_disk(cursor)
        # Held until this connection ends: processes that start together make it once.
        cursor.execute("SELECT pg_advisory_lock(hashtext(%s))", [PREFIX])
        if not creation._database_exists(cursor, name):
            _drop_others(cursor)
            _migrate(creation)
            cursor.execute(f"ALTER DATABASE {IN_WORK} RENAME TO {name}")
    connection.settings_dict["TEST"]["TEMPLATE"] = name
    creation._destroy_test_db = _drop


def _drop(name: str, verbosity: int) -> None:
    """At the end, also where somebody of this process holds a connection still: while a browser's event loop runs in
    the thread, Django's connection is another one than before and after it.
    """
    connection.close_pool()
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"DROP DATABASE {connection.ops.quote_name(name)} WITH (FORCE)")


def sources() -> set[Path]:
    """All that decides what migrations make: themselves, what they import of ours, the packages."""
    paths = {ROOT / "requirements.lock"}
    for migration in MigrationLoader(None).disk_migrations.values():
        path = Path(str(sys.modules[migration.__module__].__file__))
        ours = {name for name in imported(path.read_text()) if is_of(name, "marketplace")}
        paths |= {path, *((ROOT / name.replace(".", "/")).with_suffix(".py") for name in ours)}
    # What is imported from a module has no file of its own.
    return {path for path in paths if path.is_file()}


def fingerprint(paths: Iterable[Path]) -> str:
    told = hashlib.sha256()
    for path in sorted(paths):
        told.update(path.read_bytes())
    return told.hexdigest()[:16]


def _do_not_wait_for_the_disk(cursor: Any) -> None:
    """What the end of the machine would destroy is made again: the server is the tests' own, see their settings."""
    for name in ("fsync", "full_page_writes"):
        cursor.execute(f"ALTER SYSTEM SET {name} = off")
    cursor.execute("SELECT pg_reload_conf()")


def _drop_others(cursor: Any) -> None:
    cursor.execute("SELECT datname FROM pg_database WHERE datname ^@ %s OR datname = %s", [PREFIX, IN_WORK])
    for (name,) in cursor.fetchall():
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _migrate(creation: Any) -> None:
    described = settings.DATABASES["default"]
    before, test_before = described["NAME"], described["TEST"]
    described["TEST"] = {**test_before, "NAME": IN_WORK}
    try:
        creation.create_test_db(verbosity=0, serialize=False)
    finally:
        connection.close()
        connection.close_pool()
        described["NAME"], described["TEST"] = before, test_before
