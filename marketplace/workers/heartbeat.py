"""The row by which a running worker shows that it lives."""

import os
import socket
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from django.db import connection
from django.db.models.functions import Now

from marketplace import selectors
from marketplace.models import WorkerHeartbeat
from marketplace.selectors import HEARTBEAT_INTERVAL

# A row that nobody has refreshed for so long only says that a worker died without a word.
KEPT = timedelta(days=1)
# A transaction of this age, whosesoever, makes every claim slower by the minute.
LONGEST_SNAPSHOT_SECONDS = 300

logger = structlog.get_logger(__name__)


class Heartbeat:
    """Writes the row every ``HEARTBEAT_INTERVAL``: one statement. Not safe to share between threads."""

    def __init__(self, name: str, queues: Sequence[str], *, concurrency: int) -> None:
        # Two workers of one host, or one that follows another under the same process number, are two.
        self._identity = f"{name} on {socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
        self._queues = list(queues)
        self._concurrency = concurrency
        # Monotonic.
        self.next_at = 0.0

    def beat(self, *, in_hand: int) -> None:
        """Write the row if it is time to."""
        now = time.monotonic()
        if now < self.next_at:
            return
        if not self.next_at:
            WorkerHeartbeat.objects.filter(seen_at__lt=Now() - KEPT).delete()
        self._write(in_hand)
        self.next_at = now + HEARTBEAT_INTERVAL.total_seconds()
        held = selectors.oldest_snapshot_seconds()
        if held is not None and held > LONGEST_SNAPSHOT_SECONDS:
            logger.warning("snapshot_held_open", seconds=round(held), hint="see pg_stat_activity: backend_xmin")

    def _write(self, in_hand: int) -> None:
        params: list[Any] = [
            self._identity,
            self._queues,
            socket.gethostname(),
            os.getpid(),
            self._concurrency,
            in_hand,
        ]
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO marketplace_workerheartbeat
                    (identity, queues, host, pid, concurrency, in_hand, started_at, seen_at)
                VALUES (%s, %s, %s, %s, %s, %s, statement_timestamp(), statement_timestamp())
                ON CONFLICT (identity) DO UPDATE SET in_hand = EXCLUDED.in_hand, seen_at = EXCLUDED.seen_at
                -- The claimer need not wait for the disk: a crash forgets no more than that somebody lived before.
                RETURNING set_config('synchronous_commit', 'off', true)
                """,
                params,
            )

    def stop(self) -> None:
        """The worker ends: its row goes at once, so that nobody counts on it."""
        WorkerHeartbeat.objects.filter(pk=self._identity).delete()
