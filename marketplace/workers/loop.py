"""The loop every worker runs: claim what is due, work on it in threads, sleep until something wakes it.

It knows nothing of Stripe or of transfers. A ``Queue`` says what is due and does one piece of it.

One thread claims, in batches, a little ahead of the fixed number of threads that do the work: no batch waits for its
slowest call, and a claim's cost is shared. When nothing is due, the claimer sleeps until a notification, the next due
time or the next check, whichever comes first.
"""

import contextlib
import functools
import math
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import structlog
from django.db import connection, connections

from marketplace import deadline, tracing
from marketplace.errors import DATABASE_TROUBLE, StaleTransition, StripeDenied
from marketplace.metrics import CLAIMED, LATE_SETTLES, POISON, RELEASED
from marketplace.services import leases
from marketplace.slots import CallSlots
from marketplace.workers.heartbeat import Heartbeat
from marketplace.workers.listener import Listener

logger = structlog.get_logger(__name__)
T = TypeVar("T")

# After the database was away: soon, but not in a busy loop.
DATABASE_PAUSE_SECONDS = 1.0
# So long a settle is tried again while the database is away: a restart takes less, and the answer need not be asked for
# again when the lease has run out.
SETTLING_SECONDS = 30.0
# A thread without work gives its database connection back after this.
IDLE_SECONDS = 5.0
# When the next due time is asked for after a claim. Rows that are due and locked by others are seen and cannot be
# claimed: each claim in vain doubles it.
SHORTEST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 1.0
# What the claimer has to say of its rows waits until the threads are at work on them.
HAND_OVER_SECONDS = 0.002


class Queue(Protocol):
    """One kind of due work."""

    name: str
    # The NOTIFY channel on which its rows announce themselves.
    channel: str
    due: leases.Due

    def claim(self, *, batch_size: int, lease: timedelta) -> Sequence[Any]:
        """Lease due rows; committed on return."""
        ...

    def perform(self, claimed: Any) -> None:
        """Do one piece of work and settle it. ``StripeDenied`` stops the worker; ``StaleTransition``: a late settle."""
        ...

    def is_held_back(self, claimed: Any) -> bool:
        """Whether the row must not be begun now, though it was claimed."""
        ...

    def describe(self, claimed: Any) -> dict[str, Any]:
        """For the log: which row first, then which operation, which attempt."""
        ...

    def settle_unexpected(self, claimed: Any, exception: Exception) -> None:
        """Keep an error of our own with the row, so that it waits and cannot stop the queue."""
        ...

    def release(self, claimed: Any) -> None:
        """Give a row back that was not begun."""
        ...


@dataclass
class _Watched:
    """One queue, and when (monotonic) its next row is due as far as the claimer knows."""

    queue: Queue
    due_at: float = math.inf
    # Claims in a row that found nothing.
    in_vain: int = 0


@dataclass(frozen=True)
class _InHand:
    """A claimed row on its way to a thread; until when it may be begun, and when its lease ends, by ``deadline``."""

    queue: Queue
    claimed: Any
    begin_before: float
    lease_ends: float


def threads_for(concurrency: int) -> int:
    """More than there are calls at once: while some threads write answers down, others keep every call slot in use."""
    return concurrency + max(concurrency // 4, 2)


class Few:
    """The rows that this process has in hand of a queue that may wait for somebody slow, by their keys: ``most`` at a
    time, so that never all threads wait for him.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: set[Any] = set()

    @property
    def room(self) -> int:
        return self._most - len(self._keys)

    def add(self, keys: Iterable[Any]) -> None:
        self._keys |= set(keys)

    def done_with(self, key: Any) -> None:
        self._keys.discard(key)


class _Wake:
    """Wakes the one thread that waits, or the next time it does. As an ``Event``, in half the time: a lock that whoever
    calls sets free.
    """

    def __init__(self) -> None:
        self._called = threading.Lock()
        self._called.acquire()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):
            # Else it is free: called already.
            self._called.release()

    def wait(self, timeout: float = -1) -> None:
        """Until it is called, or was since the last time; seconds, or for ever."""
        self._called.acquire(timeout=timeout)


class Worker:
    """Runs queues in a fixed pool of threads, until it is stopped (``run``) or nothing is due (``run_once``).

    ``concurrency`` is how many calls are made at once, which the queues see to; there are ``threads_for`` it.
    ``attempt`` is how long one piece of work may take at most: a row whose lease would end before is not begun.
    """

    def __init__(
        self,
        queues: Sequence[Queue],
        *,
        name: str,
        concurrency: int,
        batch_size: int,
        lease: timedelta,
        attempt: timedelta,
        check_interval: timedelta,
        slots: CallSlots | None = None,
    ) -> None:
        self._watched = [_Watched(each) for each in queues]
        self._concurrency = concurrency
        self._slots = slots
        self._batch_size = batch_size
        self._lease = lease
        self._begin_within = (lease - attempt).total_seconds()
        self._check_interval = check_interval.total_seconds()
        self._heartbeat = Heartbeat(name, [each.name for each in queues], concurrency=concurrency)
        # Set by a notification, a thread that finds few rows left, or a signal: the one thing the claimer waits for.
        self._wake = _Wake()
        self._stopping = threading.Event()
        # Claimed rows that no thread has taken up; None tells a thread to end.
        self._buffer: queue.SimpleQueue[_InHand | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}
        # Monotonic: when the database is asked for the next due times.
        self._ask_at = 0.0
        self._in_hand = 0
        self._worked_on = 0
        self._denied: StripeDenied | None = None
        self._broken: BaseException | None = None
        self._claim_error: Exception | None = None

    # --- Control ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """No new claims; what was begun is finished, what was not is given back. Not for a signal handler: see
        ``stopping_on_signals``.
        """
        self._stopping.set()
        if self._slots is not None:
            self._slots.stop()
        self._wake.set()

    def notify(self, channel: str, seconds: float) -> None:
        """A row that announces itself on ``channel`` is due in ``seconds``."""
        due_at = time.monotonic() + seconds
        with self._lock:
            self._heard[channel] = min(self._heard.get(channel, math.inf), due_at)
        self._wake.set()

    @contextlib.contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the worker; a second SIGINT ends it at once, as a lost lease would."""

        def handle(number: int, _frame: object) -> None:
            # Not KeyboardInterrupt: the loop would still wait for its threads, which wait for Stripe.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
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

    # --- Running ------------------------------------------------------------------------------------------------------

    def run_once(self) -> int:
        """Do all that is due, and what becomes due meanwhile; the number of rows worked on, those not counted that were
        given back unbegun.

        Raises:
            StripeDenied: Stripe refuses our key; the rows stay due.
            OperationalError, InterfaceError: the database is away.
            RuntimeError: an error of our own kept a queue's rows from being claimed, or a thread from working.

        """
        with self._threads():
            while True:
                claimed = 0
                for watched in self._in_turn():
                    if self._may_claim():
                        claimed += self._claim(watched)
                if claimed == 0:
                    if self._in_hand == 0:
                        break
                    self._wake.wait()
        self._raise_if_denied()
        if self._claim_error is not None:
            raise RuntimeError("A queue's rows could not be claimed; what was due in the others is done.") from (
                self._claim_error
            )
        return self._worked_on

    def run(self) -> None:
        """Work until ``stop()``. The database may go away and come back; Stripe refusing our key ends the run.

        Raises:
            StripeDenied: as in ``run_once``.

        """
        listener = Listener([watched.queue.channel for watched in self._watched], on_notification=self.notify)
        listener.start()
        self._ask_at = 0.0
        try:
            with self._threads():
                while not self._stopping.is_set():
                    try:
                        leases.keep_plans(in_sessions=listener.has_session)
                        self._heartbeat.beat(in_hand=self._in_hand)
                        if time.monotonic() >= self._ask_at:
                            self._ask()
                            self._ask_at = time.monotonic() + min(self._check_interval, listener.longest_silence)
                        self._claim_what_is_due()
                        times = [self._ask_at, self._heartbeat.next_at]
                        if self._may_claim():
                            times += [watched.due_at for watched in self._watched]
                        timeout = max(min(times) - time.monotonic(), 0)
                    except DATABASE_TROUBLE as error:
                        _put_away(error)
                        # What was known of due times may be lost with the database: ask when it is back.
                        self._ask_at, timeout = 0.0, DATABASE_PAUSE_SECONDS
                    self._wake.wait(timeout)
        finally:
            listener.stop()
            with contextlib.suppress(*DATABASE_TROUBLE):
                self._heartbeat.stop()
            connections.close_all()
        self._raise_if_denied()

    # --- Claiming -----------------------------------------------------------------------------------------------------

    def _may_claim(self) -> bool:
        """Claimed ahead are at most a batch and a half: enough for all threads, and no lease runs for long in vain."""
        return not self._stopping.is_set() and self._buffer.qsize() <= self._batch_size // 2

    def _in_turn(self) -> list[_Watched]:
        """Each queue is first in its turn: a long backlog of one must not keep the others waiting for a thread."""
        self._watched = [*self._watched[1:], *self._watched[:1]]
        return self._watched

    def _claim_what_is_due(self) -> None:
        self._take_up_what_was_heard()
        for watched in self._in_turn():
            if not (self._may_claim() and watched.due_at <= time.monotonic()):
                continue
            claimed = self._claim(watched)
            watched.in_vain = 0 if claimed else watched.in_vain + 1
            if claimed < self._batch_size:
                # No more is due now. When there will be is asked a moment later: a row just claimed goes first.
                watched.due_at = math.inf
                self._ask_at = min(self._ask_at, time.monotonic() + pause_after(watched.in_vain))

    def _claim(self, watched: _Watched) -> int:
        """How many rows. An error of our own in the claim of one queue keeps no other queue waiting: it is told, and
        tried again.
        """
        try:
            return self._claimed(watched)
        except DATABASE_TROUBLE:
            raise
        except Exception as error:
            POISON.labels(work=watched.queue.name).inc()
            logger.exception("unexpected_error", work=watched.queue.name, step="claim")
            self._claim_error = error
            return 0

    def _claimed(self, watched: _Watched) -> int:
        began, clock = time.monotonic(), deadline.clock()
        with tracing.span("claim", work=watched.queue.name):
            claimed = watched.queue.claim(batch_size=self._batch_size, lease=self._lease)
            tracing.note(rows=len(claimed))
        with self._lock:
            self._in_hand += len(claimed)
        for row in claimed:
            held = _InHand(
                watched.queue,
                row,
                begin_before=clock + self._begin_within,
                lease_ends=clock + self._lease.total_seconds(),
            )
            self._buffer.put(held)
        if claimed:
            # Who has a row goes first: this thread would keep the interpreter to itself.
            self._stopping.wait(HAND_OVER_SECONDS)
            CLAIMED.labels(work=watched.queue.name).inc(len(claimed))
            rows = [next(iter(watched.queue.describe(row).values())) for row in claimed]
            logger.info("claimed", work=watched.queue.name, rows=rows, milliseconds=elapsed_ms(began))
        return len(claimed)

    def _ask(self) -> None:
        """Learn from the database when each queue's next row is due: one statement for all."""
        seconds = leases.seconds_until_due([watched.queue.due for watched in self._watched])
        now = time.monotonic()
        for watched, until in zip(self._watched, seconds, strict=True):
            watched.due_at = math.inf if until is None else now + until

    def _take_up_what_was_heard(self) -> None:
        with self._lock:
            heard, self._heard = self._heard, {}
        for watched in self._watched:
            watched.due_at = min(watched.due_at, heard.get(watched.queue.channel, math.inf))

    # --- Working ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """The threads that work; on leaving, those end that have nothing in hand, and the others once they are done."""
        threads = [
            # Daemons: a second signal ends the process at once, whatever they do.
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(threads_for(self._concurrency))
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            # However the loop ended: nothing that is only claimed is begun.
            self.stop()
            self._empty_buffer()
            for _ in threads:
                self._buffer.put(None)
            for thread in threads:
                thread.join()

    def _empty_buffer(self) -> None:
        """Give back at once what no thread has taken up: the threads may be busy with their last calls for long."""
        with contextlib.suppress(queue.Empty):
            while (held := self._buffer.get_nowait()) is not None:
                self._perform(held)
                with self._lock:
                    self._in_hand -= 1

    def _work(self) -> None:
        try:
            while (held := self._next_in_hand()) is not None:
                try:
                    self._perform(held)
                finally:
                    with self._lock:
                        self._in_hand -= 1
                    if self._buffer.qsize() <= self._batch_size // 2:
                        self._wake.set()
        except BaseException as error:
            # Nothing should come here; a worker that lives with fewer threads, or none, would only seem to work.
            logger.exception("thread_died")
            self._broken = error
            self.stop()
        finally:
            connections.close_all()

    def _next_in_hand(self) -> _InHand | None:
        try:
            return self._buffer.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            # Idle: the connection goes back, and is checked before its next use.
            connections.close_all()
            return self._buffer.get()

    def _perform(self, held: _InHand) -> None:
        try:
            if self._may_begin(held):
                with self._lock:
                    self._worked_on += 1
                self._work_on(held)
            else:
                RELEASED.labels(work=held.queue.name).inc()
                held.queue.release(held.claimed)
                logger.info("given_back", work=held.queue.name, **held.queue.describe(held.claimed))
        except DATABASE_TROUBLE as error:
            # The answer is not lost: when the lease has run out, the same key or a look tells it again.
            _put_away(error)
        except Exception:
            # Not even its error could be written down: the row comes back when its lease has run out.
            logger.exception("could_not_settle", work=held.queue.name, **held.queue.describe(held.claimed))

    def _may_begin(self, held: _InHand) -> bool:
        return (
            not self._stopping.is_set()
            and deadline.clock() < held.begin_before
            and not held.queue.is_held_back(held.claimed)
        )

    def _work_on(self, held: _InHand) -> None:
        try:
            with deadline.sending_until(held.lease_ends):
                held.queue.perform(held.claimed)
        except StaleTransition as error:
            LATE_SETTLES.labels(work=held.queue.name).inc()
            described = held.queue.describe(held.claimed)
            logger.warning("late_settle", work=held.queue.name, **described, error=error.message)
        except StripeDenied as error:
            self._denied = error
            self.stop()
        except DATABASE_TROUBLE:
            raise
        except Exception as unexpected:
            POISON.labels(work=held.queue.name).inc()
            logger.exception("unexpected_error", work=held.queue.name, **held.queue.describe(held.claimed))
            settle = functools.partial(held.queue.settle_unexpected, held.claimed, unexpected)
            with contextlib.suppress(StaleTransition):
                persistently(settle)

    def _raise_if_denied(self) -> None:
        if self._denied is not None:
            raise self._denied
        if self._broken is not None:
            raise RuntimeError("A thread of the worker died.") from self._broken


def pause_after(claims_in_vain: int) -> float:
    """Seconds until due times are asked for again, after so many claims in a row that found nothing."""
    doubled: float = SHORTEST_WAIT_SECONDS * 2 ** min(max(claims_in_vain - 1, 0), 10)
    return min(doubled, LONGEST_WAIT_SECONDS)


def persistently(write: Callable[[], T]) -> T:
    """Write an answer down, again and again while the database is away: it was had from Stripe once, at a price.

    Raises whatever ``write`` raises, and its last error once the database has been away for ``SETTLING_SECONDS``.
    """
    deadline = time.monotonic() + SETTLING_SECONDS
    while True:
        try:
            return write()
        except DATABASE_TROUBLE as error:
            if time.monotonic() >= deadline:
                raise
            _put_away(error)
            time.sleep(DATABASE_PAUSE_SECONDS)


def _put_away(error: Exception) -> None:
    logger.warning("database_away", error=str(error).strip())
    # Broken, perhaps; the next statement gets another.
    connection.close()


def identity(name: str) -> str:
    """Who did it, as the history tells: which worker, on which host."""
    return f"{name} on {socket.gethostname()}"


def elapsed_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
