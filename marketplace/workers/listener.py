"""Hears PostgreSQL's notifications, on a connection of its own."""

import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import structlog
from django.conf import settings
from django.db import connection

from veza.database import TIMEOUTS

logger = structlog.get_logger(__name__)

# For who looks into pg_stat_activity.
PAYLOAD = re.compile(r"[0-9]{1,15}")
APPLICATION_NAME = "veza listener"
# After the database was away: soon, but not in a busy loop.
RECONNECT_SECONDS = 1.0
# How long the listener may take to see that it should stop; it costs a wake-up of the thread, no statement.
STOP_CHECK_SECONDS = 0.2
# A connection that does not hear its own notification within this will hear no other.
HEARING_SECONDS = 2.0
# How often workers then have to look for themselves.
DEAF_CHECK_SECONDS = 1.0


class Listener(threading.Thread):
    """Tells of each notification: its channel, and in how many seconds a row is due. Reconnects by itself.

    A lost notification costs one check interval, never a row. Through PgBouncer in transaction mode none arrives:
    ``DATABASE_LISTEN_URL`` names a direct way; ``none``, or silence where our own notification should be heard, means
    that workers look by themselves every ``longest_silence`` seconds.
    """

    def __init__(self, channels: Sequence[str], *, on_notification: Callable[[str, float], None]) -> None:
        super().__init__(name="listener", daemon=True)
        self._channels = channels
        self._on_notification = on_notification
        self._stopping = threading.Event()
        self.longest_silence = DEAF_CHECK_SECONDS

    @property
    def has_session(self) -> bool:
        """Whether DATABASE_URL leads to sessions of PostgreSQL: what was heard came by that way."""
        return not settings.DATABASE_LISTEN_URL and self.longest_silence == math.inf

    def run(self) -> None:
        while not self._stopping.is_set() and settings.DATABASE_LISTEN_URL != "none":
            try:
                self._listen()
            except (psycopg.Error, OSError) as error:
                logger.warning("listener_reconnects", error=str(error).strip())
                self._stopping.wait(RECONNECT_SECONDS)
            finally:
                # Also where this thread ends by an error of our own: nobody may rely on it.
                self.longest_silence = DEAF_CHECK_SECONDS

    def _listen(self) -> None:
        with _connect() as connected:
            for channel in self._channels:
                connected.execute(f"LISTEN {channel}")
            self.longest_silence = math.inf if self._hears(connected) else DEAF_CHECK_SECONDS
            # What was written while nobody listened.
            for channel in self._channels:
                self._on_notification(channel, 0.0)
            while not self._stopping.is_set():
                for heard in connected.notifies(timeout=STOP_CHECK_SECONDS, stop_after=1):
                    self._tell(heard)

    def _hears(self, connected: psycopg.Connection[Any]) -> bool:
        own = f"veza_hearing_{uuid.uuid4().hex}"
        connected.execute(f"LISTEN {own}")
        # From another connection: a pooler in transaction mode hands on what its own client said.
        with _connect() as other:
            other.execute(f"NOTIFY {own}")
        deadline = time.monotonic() + HEARING_SECONDS
        while time.monotonic() < deadline and not self._stopping.is_set():
            # As a list: while it is read the connection is locked.
            for heard in list(connected.notifies(timeout=STOP_CHECK_SECONDS, stop_after=1)):
                if heard.channel == own:
                    connected.execute(f"UNLISTEN {own}")
                    return True
                self._tell(heard)
        logger.warning(
            "notifications_do_not_arrive",
            hint="PgBouncer in transaction mode? Give DATABASE_LISTEN_URL a direct address, or none.",
        )
        return False

    def _tell(self, heard: psycopg.Notify) -> None:
        # Milliseconds; somebody else's payload says nothing: then it may be due now.
        milliseconds = int(heard.payload) if PAYLOAD.fullmatch(heard.payload) else 0
        self._on_notification(heard.channel, milliseconds / 1000)

    def stop(self) -> None:
        self._stopping.set()
        self.join(timeout=5)


def _connect() -> psycopg.Connection[Any]:
    if settings.DATABASE_LISTEN_URL:
        url = psycopg.conninfo.make_conninfo(settings.DATABASE_LISTEN_URL, **TIMEOUTS)
        return psycopg.connect(url, autocommit=True, application_name=APPLICATION_NAME)
    params = connection.get_connection_params()
    for name in ("cursor_factory", "context", "pool"):
        params.pop(name, None)
    return psycopg.connect(**{**params, "application_name": APPLICATION_NAME}, autocommit=True)
