"""The loop every worker runs: claim what is due, work on it in threads, sleep until something wakes it.

It knows nothing of Stripe or of transfers. A ``Queue`` says what is due and does one piece of it.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Protocol

import psycopg
import structlog
from django.db import close_old_connections, connection, connections

from marketplace.errors import DATABASE_TROUBLE, StaleTransition, StripeDenied
from marketplace.metrics import CLAIMED, LATE_SETTLES, POISON

logger = structlog.get_logger(__name__)

# After the database was away: soon, but not in a busy loop.
DATABASE_PAUSE_SECONDS = 1.0
# How long the listener may take to see that it should stop; it costs a wake-up of the thread, no statement.
STOP_CHECK_SECONDS = 0.2
# A row that comes due before the next poll is not waited for more precisely than this.
SHORTEST_WAIT_SECONDS = 0.05


class Queue(Protocol):
    """One kind of due work."""

    name: str
    # The NOTIFY channel on which its rows announce themselves.
    channel: str

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[Any]:
        """Lease due rows; committed on return."""
        ...

    def perform(self, claimed: Any) -> None:
        """Do one piece of work and settle it. ``StripeDenied`` stops the worker; ``StaleTransition``: a late settle."""
        ...

    def settle_unexpected(self, claimed: Any, exception: Exception) -> None:
        """Keep an error of our own with the row, so that it waits and cannot stop the queue."""
        ...

    def release(self, claimed: Any) -> None:
        """Give a row back that was not begun."""
        ...

    def seconds_until_due(self) -> float | None:
        """How long until the next waiting row is due, by the database's clock; None where none waits."""
        ...


class Worker:
    """Runs queues in a fixed pool of threads, refilled as soon as one is free: no batch waits for its slowest call."""

    def __init__(
        self,
        queues: Sequence[Queue],
        *,
        concurrency: int,
        batch_size: int,
        lease: timedelta,
        check_interval: timedelta,
    ) -> None:
        self._queues = queues
        self._concurrency = concurrency
        self._batch_size = batch_size
        self._lease = lease
        self._check_interval = check_interval.total_seconds()
        # Set by a notification, a finished row, or a signal: the one thing the loop waits for.
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._in_hand = 0
        self._lock = threading.Lock()
        self._denied: StripeDenied | None = None

    def stop(self) -> None:
        """No new claims; what is in hand is finished. Not for a signal handler: see ``stopping_on_signals``."""
        self._stopping.set()
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    @contextlib.contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the worker; a second SIGINT ends it at once, as a lost lease would."""

        def handle(number: int, _frame: object) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # In a thread of its own: this one may have been interrupted while it held the event's lock.
            threading.Thread(target=stop, args=(number,), name="stopping").start()

        def stop(number: int) -> None:
            logger.info("worker_stopping", signal=signal.Signals(number).name, in_hand=self._in_hand)
            self.stop()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run_once(self) -> int:
        """Do all that is due, and what becomes due meanwhile; the number of rows worked on.

        Raises:
            StripeDenied: Stripe refuses our key; the rows stay due.
            OperationalError, InterfaceError: the database is away.

        """
        done = 0
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="worker") as pool:
            while True:
                self._wake.clear()
                claimed = 0 if self._stopping.is_set() else self._refill(pool)
                done += claimed
                if claimed == 0 and self._in_hand == 0:
                    break
                if claimed == 0 or self._in_hand >= self._concurrency:
                    self._wake.wait()
        self._raise_if_denied()
        return done

    def run(self) -> None:
        """Work until ``stop()``. The database may go away and come back; Stripe refusing our key ends the run.

        Raises:
            StripeDenied: as in ``run_once``.

        """
        listener = Listener([queue.channel for queue in self._queues], on_notification=self.wake)
        listener.start()
        try:
            with ThreadPoolExecutor(self._concurrency, thread_name_prefix="worker") as pool:
                while not self._stopping.is_set():
                    self._wake.clear()
                    try:
                        claimed = self._refill(pool)
                        timeout = None if self._is_full() else self._seconds_to_wait(claimed)
                    except DATABASE_TROUBLE as error:
                        logger.warning("database_away", error=str(error).strip())
                        close_old_connections()
                        timeout = DATABASE_PAUSE_SECONDS
                    if timeout != 0:
                        self._wake.wait(timeout)
        finally:
            listener.stop()
            connections.close_all()
        self._raise_if_denied()

    def _is_full(self) -> bool:
        return self._in_hand >= self._concurrency

    def _seconds_to_wait(self, claimed: int) -> float:
        if claimed:
            return 0
        waits = [seconds for queue in self._queues if (seconds := queue.seconds_until_due()) is not None]
        return max(min([self._check_interval, *waits]), SHORTEST_WAIT_SECONDS)

    def _refill(self, pool: ThreadPoolExecutor) -> int:
        """Claim as many rows as there are free threads, no more: a claimed row's lease is running."""
        total = 0
        # Each queue is first in its turn: a long backlog of one must not keep the others waiting for a free thread.
        self._queues = [*self._queues[1:], *self._queues[:1]]
        for queue in self._queues:
            free = min(self._concurrency - self._in_hand, self._batch_size)
            if free <= 0:
                break
            claimed = queue.claim(batch_size=free, lease=self._lease)
            CLAIMED.labels(work=queue.name).inc(len(claimed))
            total += len(claimed)
            with self._lock:
                self._in_hand += len(claimed)
            for row in claimed:
                pool.submit(self._perform, queue, row)
        return total

    def _perform(self, queue: Queue, claimed: Any) -> None:
        try:
            if self._denied is not None:
                queue.release(claimed)
            else:
                self._work_on(queue, claimed)
        except DATABASE_TROUBLE as error:
            # The answer is not lost: when the lease has run out, the same key or a look tells it again.
            logger.warning("database_away", work=queue.name, error=str(error).strip())
        except Exception:
            # Not even its error could be written down: the row comes back when its lease has run out.
            logger.exception("could_not_settle", work=queue.name)
        finally:
            close_old_connections()
            with self._lock:
                self._in_hand -= 1
            self._wake.set()

    def _work_on(self, queue: Queue, claimed: Any) -> None:
        try:
            queue.perform(claimed)
        except StaleTransition as error:
            LATE_SETTLES.labels(work=queue.name).inc()
            logger.warning("late_settle", work=queue.name, error=error.message)
        except StripeDenied as error:
            self._denied = error
            self.stop()
        except DATABASE_TROUBLE:
            raise
        except Exception as error:
            POISON.labels(work=queue.name).inc()
            logger.exception("unexpected_error", work=queue.name)
            with contextlib.suppress(StaleTransition):
                queue.settle_unexpected(claimed, error)

    def _raise_if_denied(self) -> None:
        if self._denied is not None:
            raise self._denied


class Listener(threading.Thread):
    """Listens on PostgreSQL's channels on a connection of its own, and reconnects by itself.

    A lost notification costs one check interval, never a row.
    """

    def __init__(self, channels: Sequence[str], *, on_notification: Any) -> None:
        super().__init__(name="listener", daemon=True)
        self._channels = channels
        self._on_notification = on_notification
        self._stopping = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except (psycopg.Error, OSError) as error:
                logger.warning("listener_reconnects", error=str(error).strip())
                self._stopping.wait(DATABASE_PAUSE_SECONDS)

    def _listen(self) -> None:
        params = connection.get_connection_params()
        for name in ("cursor_factory", "context", "pool"):
            params.pop(name, None)
        with psycopg.connect(**params, autocommit=True) as self._connection:
            for channel in self._channels:
                self._connection.execute(f"LISTEN {channel}")
            # What was written while nobody listened.
            self._on_notification()
            while not self._stopping.is_set():
                for _ in self._connection.notifies(timeout=STOP_CHECK_SECONDS, stop_after=1):
                    self._on_notification()

    def stop(self) -> None:
        self._stopping.set()
        self.join(timeout=5)


def identity(name: str) -> str:
    """Who did it, as the history tells: which worker, on which host."""
    return f"{name} on {socket.gethostname()}"


def elapsed_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
