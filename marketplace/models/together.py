"""Statements that go to PostgreSQL in one round trip: writes wait until something is asked, or their block ends.

Each is a statement of its own, with its own row count and the history's actor and reason. So a refund over many sellers
is written as it reads, step by step, and costs a message, not one for each step.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg
from django.db import connections
from psycopg.pq import Format, TransactionStatus

Rows = list[tuple[Any, ...]]
# Gets the number of rows that the statement wrote, and what it returned.
Written = Callable[[int, Rows], None]

# psycopg's own, in C where that is installed. Django's is in Python, and a row has many timestamps.
TIMESTAMPTZ_LOADER = psycopg.adapters.get_loader(psycopg.adapters.types["timestamptz"].oid, Format.TEXT)

# Until the transaction ends, or another takes its place.
_CONTEXT = "SET LOCAL pghistory.context_metadata = %s"


class _Statements:
    def __init__(self) -> None:
        self._sql: list[str] = []
        self._params: list[Any] = []
        # One for each result.
        self._written: list[Written | None] = []
        self._context = ""

    def add(self, sql: str, params: Sequence[Any], written: Written | None = None) -> None:
        self._sql.append(sql)
        self._params += params
        self._written.append(written)

    def add_write(self, sql: str, params: Sequence[Any], *, context: dict[str, Any] | None, written: Written) -> None:
        if context is not None and (described := json.dumps(context)) != self._context:
            self.add(_CONTEXT, [described])
            self._context = described
        self.add(sql, params, written)

    def send(self) -> None:
        if not self._sql:
            return
        sql, params, expected = "; ".join(self._sql), self._params, self._written
        self.__init__()  # type: ignore[misc]
        connection = connections["default"]
        # Past all wrappers: pghistory's would read the results before us, our own block's would send again.
        wrappers, connection.execute_wrappers = connection.execute_wrappers, []
        try:
            with connection.cursor() as cursor, connection.wrap_database_errors:
                results = cursor.cursor
                results.adapters.register_loader("timestamptz", TIMESTAMPTZ_LOADER)
                if begins := _takes_begin_over(connection.connection):
                    sql = f"BEGIN; {sql}"
                cursor.execute(sql, params)
                if begins:
                    results.nextset()
                for written in expected:
                    if written is not None:
                        written(results.rowcount, results.fetchall() if results.pgresult.nfields else [])
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
    statements = _Statements()

    def send_first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001 - Django's
        statements.send()
        return execute(sql, params, many, context)

    token = _waiting.set(statements)
    try:
        with connections["default"].execute_wrapper(send_first):
            yield
        statements.send()
    finally:
        _waiting.reset(token)


def write(sql: str, params: Sequence[Any], *, context: dict[str, Any] | None, written: Written) -> None:
    """One write, now or with what waits; ``context`` is for the history, None where it tells nothing of this."""
    waiting = _waiting.get()
    statements = waiting or _Statements()
    statements.add_write(sql, params, context=context, written=written)
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
        statements.add(sql, params, lambda _, rows: found.append(rows))
    statements.send()
    return found
