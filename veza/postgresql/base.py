import select
from typing import Any

import psycopg
from django.db.backends.postgresql import base
from psycopg_pool import ConnectionPool


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """One that lives; those of the pool that PostgreSQL has ended go back to it, and it makes others.

        Django's own check (``CONN_HEALTH_CHECKS``) is a round trip before each transaction.
        Raises ``OperationalError`` as Django's: after the pool's timeout where PostgreSQL is away.
        """
        while True:
            connection = super().get_new_connection(conn_params)
            if self.pool is None or is_alive(connection):
                return connection
            connection.close()
            self.pool.putconn(connection)


def is_alive(connection: "psycopg.Connection[Any]") -> bool:
    """A server that ends a connection, or itself, closes its socket, and usually says why: then there is something to
    read where nothing was asked. It may be anything else too, so only then is PostgreSQL asked.
    """
    try:
        waiting = select.poll()
        waiting.register(connection.fileno(), select.POLLIN)
        if waiting.poll(0):
            ConnectionPool.check_connection(connection)
    except psycopg.Error:
        return False
    return True
