"""A PostgreSQL of the benchmark's own, its databases, and rows as the program itself leaves them."""

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
from psycopg import sql

from bench.processes import PYTHON, ROOT, ChildFailed, environment
from veza import database

STATE = ROOT / ".veza" / "bench"
POSTGRES = STATE / "postgres"
LOGS = STATE / "logs"
# What `manage.py migrate` made, without rows: every database of ours is a copy.
TEMPLATE = "bench_template"
SECRET_KEY = "only-for-the-benchmark-0123456789-abcdefghijklmnop"  # noqa: S105 - nothing is protected by it
WEBHOOK_SECRET = "whsec_onlyforthebenchmark"  # noqa: S105 - the same
SELLERS = 1000

Connection = psycopg.Connection[tuple[Any, ...]]


class Server:
    """The embedded PostgreSQL in a folder of its own, configured as for ourselves, but for what has to be seen."""

    def __init__(self) -> None:
        STATE.mkdir(parents=True, exist_ok=True)
        LOGS.mkdir(exist_ok=True)
        # Asked at a server's start only, so it is written before: by a process that stops the server at its end.
        subprocess.run([PYTHON, "-m", "bench.ground", "configure"], cwd=ROOT, env=environment(), check=True)
        # Should we be killed, it sees its input end, and removes what we no longer can.
        self._guard = subprocess.Popen(
            [PYTHON, "-m", "bench.ground", "guard"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.socket = database.ensure_running(POSTGRES)
        self.log = POSTGRES / "log"
        with self.connect("postgres") as connection:
            for (name,) in connection.execute(
                "SELECT datname FROM pg_database WHERE datname LIKE 'bench_%'"
            ).fetchall():
                _drop(connection, name)
            self.version = connection.info.parameter_status("server_version") or ""
            self.pid = int((POSTGRES / "postmaster.pid").read_text().split()[0])
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        manage("migrate", "--verbosity", "0", env=self.settings(TEMPLATE))
        with self.connect(TEMPLATE) as connection:
            _fill_what_surrounds(connection)

    def connect(self, name: str) -> Connection:
        return psycopg.connect(
            host=self.socket, user="postgres", dbname=name, autocommit=True, application_name="bench"
        )

    def url(self, name: str) -> str:
        return f"postgres://postgres@/{name}?host={quote(self.socket, safe='')}"

    def settings(self, name: str, **further: str) -> dict[str, str]:
        """The environment of one of our programs on this database."""
        return environment(
            DATABASE_URL=self.url(name),
            SECRET_KEY=SECRET_KEY,
            STRIPE_SECRET_KEY="sk_test_benchmark",
            STRIPE_WEBHOOK_SECRETS=WEBHOOK_SECRET,
            **further,
        )

    @contextlib.contextmanager
    def database(self, name: str, *, migrated: bool = True) -> Iterator[Connection]:
        """A database that is gone afterwards, and a connection to it."""
        with self.connect("postgres") as connection:
            _drop(connection, name)
            template = sql.Identifier(TEMPLATE if migrated else "template1")
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), template))
        try:
            with self.connect(name) as connection:
                yield connection
        finally:
            with self.connect("postgres") as connection:
                _drop(connection, name)

    def remove(self) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()


def _drop(connection: Connection, name: str) -> None:
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def manage(*arguments: str, env: dict[str, str]) -> None:
    done = subprocess.run(
        [PYTHON, "manage.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ChildFailed(f"manage.py {' '.join(arguments)}: {done.stderr[-2000:]}")


# --- Rows -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def by_hand(connection: Connection) -> Iterator[None]:
    """Triggers and foreign keys do not run: the rows that are written here are whole already, and many."""
    connection.execute("SET session_replication_role = replica")
    try:
        yield
    finally:
        connection.execute("RESET session_replication_role")


def insert(connection: Connection, table: str, values: dict[str, str], source: str) -> None:
    """``INSERT … SELECT`` of these SQL expressions; columns not named get the emptiest value that they take.

    So a column that the program gains later needs no change here.
    """
    columns = connection.execute(
        """
        SELECT column_name, data_type FROM information_schema.columns
        WHERE table_name = %s AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'
          AND is_generated = 'NEVER'
        """,
        [table],
    ).fetchall()
    assert columns, table
    given = dict(values)
    for name, kind in columns:
        if name not in given:
            given[name] = EMPTY[kind]
    names = sql.SQL(", ").join(map(sql.Identifier, given))
    expressions = sql.SQL(", ").join(sql.SQL(trusted(expression)) for expression in given.values())
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
        sql.Identifier(table), names, expressions, sql.SQL(trusted(source))
    )
    connection.execute(statement)


def trusted(text: str) -> LiteralString:
    """Written in this package, though put together at run time."""
    return text


EMPTY = {
    "character varying": "''",
    "text": "''",
    "bigint": "0",
    "integer": "0",
    "boolean": "false",
    "uuid": "gen_random_uuid()",
    "timestamp with time zone": "statement_timestamp()",
    "jsonb": "'{}'",
}


def _fill_what_surrounds(connection: Connection) -> None:
    with by_hand(connection):
        insert(
            connection,
            "auth_user",
            {"id": "1", "username": "'buyer'", "is_active": "true", "password": "'!'"},
            "generate_series(1, 1)",
        )
        insert(
            connection,
            "marketplace_seller",
            {
                "id": "n",
                "name": "'Seller ' || n",
                "stripe_account_id": "'acct_1Bench' || lpad(n::text, 12, '0')",
                "transfers_capability": "'active'",
                "payouts_enabled": "true",
            },
            f"generate_series(1, {SELLERS}) AS n",
        )


TABLES = ["marketplace_order", "marketplace_sellertransfer", "marketplace_refund", "marketplace_transferreversal"]
AMOUNT = 5000
SHARE = 4500


def fill_orders(
    connection: Connection,
    first: int,
    last: int,
    *,
    due_in: int = 1,
    only_due: bool = False,
    also: Mapping[str, str] | None = None,
) -> None:
    """Orders of these numbers: each ``due_in``-th refunded in full, the others paid; 0: all paid.

    Here and below ``also`` has SQL expressions of the number ``n`` for columns that are to be otherwise.
    """
    refunded = _each(due_in)
    insert(
        connection,
        "marketplace_order",
        {
            "id": "n",
            "buyer_id": "1",
            "status": f"CASE WHEN {refunded} THEN 'refunded' ELSE 'paid' END",
            "amount": str(AMOUNT),
            "amount_refunded": f"CASE WHEN {refunded} THEN {AMOUNT} ELSE 0 END",
            "commission_basis_points": "1000",
            "currency": "'eur'",
            "stripe_payment_intent_id": "'pi_3Bench' || lpad(n::text, 14, '0')",
            "stripe_charge_id": "'ch_3Bench' || lpad(n::text, 14, '0')",
            "paid_at": "statement_timestamp() - interval '1 day'",
            **(also or {}),
        },
        f"generate_series({first}, {last}) AS n WHERE {refunded if only_due else 'true'}",
    )


def _each(due_in: int) -> str:
    return f"n % {due_in} = 0" if due_in else "false"


def fill_transfers(
    connection: Connection,
    first: int,
    last: int,
    *,
    sellers: int = 1,
    due_in: int = 1,
    also: Mapping[str, str] | None = None,
) -> None:
    """Transfers that Stripe made, ``sellers`` for each order of these numbers; of refunded orders they are due."""
    due = _each(due_in)
    insert(
        connection,
        "marketplace_sellertransfer",
        {
            "id": f"(n - 1) * {sellers} + part",
            "order_id": "n",
            "seller_id": f"(n * {sellers} + part) % {SELLERS} + 1",
            "status": f"CASE WHEN {due} THEN 'reversal_pending' ELSE 'completed' END",
            "amount": str(SHARE // sellers),
            "currency": "'eur'",
            "stripe_transfer_id": f"'tr_1Bench' || lpad(((n - 1) * {sellers} + part)::text, 14, '0')",
            "key_generation": "1",
            "first_attempted_at": "statement_timestamp() - interval '1 day'",
            "next_retry_at": f"CASE WHEN {due} THEN statement_timestamp() END",
            **(also or {}),
        },
        f"generate_series({first}, {last}) AS n, generate_series(1, {sellers}) AS part",
    )


def fill_refunds(
    connection: Connection, first: int, last: int, *, due_in: int = 1, also_reversed: Mapping[str, str] | None = None
) -> None:
    """A whole refund and the reversal it owes, for each ``due_in``-th order of these numbers and its one transfer."""
    numbers = f"generate_series({first}, {last}) AS n WHERE {_each(due_in)}"
    insert(
        connection,
        "marketplace_refund",
        {
            "id": "n",
            "order_id": "n",
            "status": "'succeeded'",
            "amount": str(AMOUNT),
            "currency": "'eur'",
            "reason": "'made at Stripe'",
            "key_generation": "1",
            "stripe_refund_id": "'re_3Bench' || lpad(n::text, 14, '0')",
            "stripe_seen_at": "statement_timestamp()",
            "succeeded_at": "statement_timestamp()",
        },
        numbers,
    )
    insert(
        connection,
        "marketplace_transferreversal",
        {
            "id": "n",
            "transfer_id": "n",
            "refund_id": "n",
            "status": "'pending'",
            "cause": "'refund'",
            "amount": str(SHARE),
            "currency": "'eur'",
            "key_generation": "1",
            **(also_reversed or {}),
        },
        numbers,
    )


@contextlib.contextmanager
def without_indexes(connection: Connection) -> Iterator[None]:
    """Indexes and unique constraints of the filled tables are dropped, and built again as they were."""
    found = connection.execute(
        """
        SELECT 'DROP INDEX ' || quote_ident(index.relname), pg_get_indexdef(index.oid)
        FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid JOIN pg_class AS held ON held.oid = indrelid
        WHERE held.relname = ANY (%s) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = index.oid)
        """,
        [TABLES],
    ).fetchall()
    found += connection.execute(
        """
        SELECT 'ALTER TABLE ' || held.relname || ' DROP CONSTRAINT ' || quote_ident(conname),
               'ALTER TABLE ' || held.relname || ' ADD CONSTRAINT ' || quote_ident(conname) || ' '
               || pg_get_constraintdef(constr.oid)
        FROM pg_constraint AS constr JOIN pg_class AS held ON held.oid = conrelid
        WHERE held.relname = ANY (%s) AND contype = 'u'
        """,
        [TABLES],
    ).fetchall()
    for drop, _ in found:
        connection.execute(trusted(drop))
    yield
    connection.execute("SET maintenance_work_mem = '512MB'")
    for _, create in found:
        connection.execute(trusted(create))
    connection.execute("RESET maintenance_work_mem")


def owe_reversals(connection: Connection, first: int, count: int) -> None:
    """Reversals due now, one a transfer, as refunds by webhook leave them. All come in one commit; workers are told."""
    last = first + count - 1
    with connection.transaction(), by_hand(connection):
        fill_orders(connection, first, last)
        fill_transfers(connection, first, last)
        fill_refunds(connection, first, last)
    analyze(connection)
    notify(connection)


def analyze(connection: Connection) -> None:
    """As autovacuum would soon: plans for empty tables are nobody's."""
    for table in TABLES:
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))


def notify(connection: Connection) -> None:
    connection.execute("SELECT pg_notify('veza_reversals', '0')")


def reversals_left(connection: Connection) -> int:
    (count,) = connection.execute(
        "SELECT count(*) FROM marketplace_sellertransfer WHERE status <> 'reversed'"
    ).fetchone() or (0,)
    return int(count)


# --- What PostgreSQL was asked ----------------------------------------------------------------------------------------

# Process, virtual transaction, application: so that transactions can be told apart that write nothing.
LOG_PREFIX = "bench|%p|%v|%d|%a|"
LOGGED = re.compile(
    r"^bench\|(\d+)\|([^|]*)\|([^|]*)\|([^|]*)\|LOG: {2}(statement|execute [^:]*|fastpath function call): "
)


@dataclass(frozen=True)
class Asked:
    """What the programs on one database asked PostgreSQL: every statement, BEGIN and COMMIT too."""

    statements: int
    transactions: int


@contextlib.contextmanager
def statements_logged(server: Server, name: str) -> Iterator[list[str]]:
    """Collects, while it lasts, the log's lines of statements on database ``name`` that are not the benchmark's own.

    The embedded server has no pg_stat_statements; its log has every statement, with ``log_statement = all``.
    """
    lines: list[str] = []
    begin = server.log.stat().st_size
    with server.connect("postgres") as connection:
        connection.execute(sql.SQL("ALTER SYSTEM SET log_line_prefix = {}").format(sql.Literal(LOG_PREFIX)))
        connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        connection.execute("SELECT pg_reload_conf()")
        # Every process takes the new setting up before its next statement.
        time.sleep(0.5)
        try:
            yield lines
        finally:
            connection.execute("ALTER SYSTEM RESET log_line_prefix")
            connection.execute("ALTER SYSTEM RESET log_statement")
            connection.execute("SELECT pg_reload_conf()")
            time.sleep(0.2)
            with server.log.open(errors="replace") as log:
                log.seek(begin)
                lines += [
                    line for line in log if (found := LOGGED.match(line)) and found[3] == name and found[4] != "bench"
                ]


def asked(lines: list[str]) -> Asked:
    found = [LOGGED.match(line) for line in lines]
    return Asked(statements=len(lines), transactions=len({match[2] for match in found if match}))


def _guard() -> None:
    sys.stdin.read()
    database.stop(POSTGRES)
    shutil.rmtree(POSTGRES, ignore_errors=True)


def _configure() -> None:
    socket = database.ensure_running(POSTGRES)
    with psycopg.connect(host=socket, user="postgres", dbname="postgres", autocommit=True) as connection:
        # When exactly a webhook's transaction was committed.
        connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        # As our own database has it, for all that is measured, what it is compared with too.
        connection.execute(f"ALTER SYSTEM SET random_page_cost = {database.RANDOM_PAGE_COST}")


if __name__ == "__main__":
    {"configure": _configure, "guard": _guard}[sys.argv[1]]()
