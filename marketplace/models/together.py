"""Statements that go to PostgreSQL in one round trip: writes wait until something is asked, or their block ends.

Each is a statement of its own, with its own row count and the history's actor and reason. So a refund over many sellers
is written as it reads, step by step, and costs a message, not one for each step.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, NamedTuple

import psycopg
from django.db import DataError, connections, transaction
from psycopg.pq import Format, TransactionStatus

from marketplace.errors import StaleTransition

Rows = list[tuple[Any, ...]]
# Gets the number of rows that the statement wrote, and what it returned.
Written = Callable[[int, Rows], None]

# psycopg's own, in C where that is installed. Django's is in Python, and a row has many timestamps.
TIMESTAMPTZ_LOADER = psycopg.adapters.get_loader(psycopg.adapters.types["timestamptz"].oid, Format.TEXT)

# Until the transaction ends, or another takes its place.
_CONTEXT = "SET LOCAL pghistory.context_metadata = %s"


class Statement(NamedTuple):
    """What is sent, and who hears what became of it."""

    sql: str
    params: Sequence[Any] = ()
    written: Written | None = None
    # The same for a message that commits too. There ``written`` is called too late to take anything back, so the
    # statement itself fails, by a division by zero, where ``written`` would raise. None if it cannot.
    with_commit: str | None = None


COMMIT = Statement(sql="COMMIT", with_commit="COMMIT")


class _Statements:
    def __init__(self) -> None:
        self._begins = False
        self._forget()

    def _forget(self) -> None:
        self._waiting: list[Statement] = []
        self._context = ""

    def add(self, statement: Statement) -> None:
        self._waiting.append(statement)

    def add_write(self, statement: Statement, *, context: dict[str, Any] | None) -> None:
        if context is not None and (described := json.dumps(context)) != self._context:
            self.add(Statement(sql=_CONTEXT, params=[described], with_commit=_CONTEXT))
            self._context = described
        self.add(statement)

    def send_and_commit(self) -> None:
        """In one message, if this began the transaction. Else whoever began it commits."""
        together = self._begins and all(each.with_commit is not None for each in self._waiting)
        if together:
            self.add(COMMIT)
        self.send(commits=together)

    def send(self, *, commits: bool = False) -> None:
        if not self._waiting:
            return
        expected = self._waiting
        sql = "; ".join(each.with_commit if commits and each.with_commit else each.sql for each in expected)
        params = list(chain.from_iterable(each.params for each in expected))
        self._forget()
        connection = connections["default"]
        # Past all wrappers: pghistory's would read the results before us, our own block's would send again.
        wrappers, connection.execute_wrappers = connection.execute_wrappers, []
        try:
            with connection.cursor() as cursor, connection.wrap_database_errors:
                results = cursor.cursor
                results.adapters.register_loader("timestamptz", TIMESTAMPTZ_LOADER)
                if begins := _takes_begin_over(connection.connection):
                    self._begins = True
                    sql = f"BEGIN; {sql}"
                cursor.execute(sql, params)
                if begins:
                    results.nextset()
                for each in expected:
                    if each.written is not None:
                        each.written(results.rowcount, results.fetchall() if results.pgresult.nfields else [])
                    results.nextset()
        finally:
            connection.execute_wrappers = wrappers


def _takes_begin_over(connection: "psycopg.Connection[Any]") -> bool:
    """Whether this is the first that a transaction sends. psycopg would send BEGIN before it, as a message of its own;
    with autocommit it leaves that to us, and COMMIT or ROLLBACK are sent as ever.
    """
    is_first = not connection.autocommit and connection.pgconn.transaction_status == TransactionStatus.IDLE
    # Django sets the level where its options name one: that BEGIN says more.
    if not is_first or connection.isolation_level is not None:
        return False
    connection.autocommit = True
    return True


_waiting: ContextVar[_Statements | None] = ContextVar("waiting", default=None)


@contextmanager
def written_together() -> Iterator[None]:
    """What is written in this block waits for its end, or for the next question of anybody; in the order of writing.

    So ``StaleTransition`` may be raised later than by the write that it is about, but always before the block is over:
    it belongs inside of the transaction. If the block fails, what waits is not written.
    """
    if _waiting.get() is not None:
        yield
        return
    with _collecting() as statements:
        yield
        statements.send()


@contextmanager
def committed_together() -> Iterator[None]:
    """A transaction, as ``atomic(durable=True)``, and what is written in it as by ``written_together``: its last writes
    go with its COMMIT, in one message.

    Raises:
        StaleTransition: a row of those was moved by somebody first; nothing of the transaction was written.

    """
    with transaction.atomic(durable=True), _collecting() as statements:
        yield
        try:
            statements.send_and_commit()
        except DataError as error:
            if isinstance(error.__cause__, psycopg.errors.DivisionByZero):
                raise StaleTransition("one of the rows was moved first, or is no longer ours") from error
            raise


@contextmanager
def _collecting() -> Iterator[_Statements]:
    statements = _Statements()

    def send_first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001 - Django's
        statements.send()
        return execute(sql, params, many, context)

    token = _waiting.set(statements)
    try:
        with connections["default"].execute_wrapper(send_first):
            yield statements
    finally:
        _waiting.reset(token)


def write(statement: Statement, *, context: dict[str, Any] | None) -> None:
    """One write, now or with what waits; ``context`` is for the history, None where it tells nothing of this."""
    waiting = _waiting.get()
    statements = waiting or _Statements()
    statements.add_write(statement, context=context)
    if waiting is None:
        statements.send()


def ask(*questions: tuple[str, Sequence[Any]]) -> list[Rows]:
    """The rows of each question, in one round trip with what waits to be written, which they see.

    PostgreSQL looks anew for each: a question sees all that others had committed when the locks of the one before it
    were had.
    """
    statements = _waiting.get() or _Statements()
    found: list[Rows] = []
    for sql, params in questions:
        statements.add(Statement(sql=sql, params=params, written=lambda _, rows: found.append(rows)))
    statements.send()
    return found
