"""Threads with a baton: exactly one goes on at any time, and a seed decides which, and what happens to it.

A *task* is something that one thread of one process does: take a batch, work on a row, take an event in. At each
*point* (before and after every statement, commit and request) the task may lose the baton, stand still for a while,
find the database gone, or die with its whole process. What it had not committed is undone, what it had is not.

A task may be parked inside a transaction, one at a time. Whoever waits for its lock in PostgreSQL makes it go on
until its transaction ends: so real lock waits happen, and every run of a seed meets the same ones.
"""

import queue
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

import psycopg
from django.db import OperationalError, connection, connections
from psycopg.errors import DeadlockDetected
from psycopg.pq import TransactionStatus

from tests.simulation import clocks

# Real seconds. A task that is not heard of for so long waits for something that the scheduler does not know.
HANGS_AFTER = 30.0
# Real seconds until the database is asked whether the running task waits for the parked one's lock.
ASK_AFTER = 0.004
WRONG_TIME = re.compile(r"\b(now|transaction_timestamp)\(|\bcurrent_(timestamp|date|time)|\blocaltime", re.IGNORECASE)
TABLE = re.compile(r"(?:marketplace|auth)_(\w+)")
WRITTEN = re.compile(r'\b(INSERT INTO|UPDATE|DELETE FROM) "?(?:marketplace|auth)_(\w+)')
LOCKED = re.compile(r"\bFOR (NO KEY )?UPDATE\b")
READY, RUNNING, DONE = "ready", "running", "done"


class Crash(BaseException):
    """The process is gone; what unwinds is only what the operating system and the database would clean up."""


class Hang(AssertionError):
    """The simulation itself cannot go on."""


@dataclass(eq=False)
class Host:
    """A process, as far as dying and clocks are concerned."""

    name: str
    # What its wall clock is wrong by, and what its monotonic one lost while the machine was suspended.
    skew: float = 0.0
    suspended: float = 0.0
    # How long any of its threads was made to stand still: others wait for it, say for its turn to call.
    stalled: float = 0.0
    is_dead: bool = False
    tasks: list["Task"] = field(default_factory=list)


@dataclass(eq=False)
class Task:
    name: str
    host: Host
    run: Callable[[], Any]
    # Given the crash or error that ended it, or None. Runs when it holds the baton no more.
    ended: Callable[["Task"], None] = lambda _task: None
    # Whether anything may go wrong in it.
    is_calm: bool = False
    state: str = READY
    wake_at: float = 0.0
    # It waits for another task of its process.
    waits_for: Callable[[], bool] | None = None
    crew: "Crew | None" = None
    in_transaction: bool = False
    # Somebody waits for its locks: it goes on until its transaction ends.
    forced: bool = False
    blocked: "Task | None" = None
    # Set once whoever held the lock stands still again: until then two would go on at once.
    may_go: threading.Event | None = None
    crashed: bool = False
    error: BaseException | None = None
    result: Any = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    # What happens when its request's bytes go out.
    departure: Callable[[], None] | None = None
    # It was told that a commit failed that had not.
    lost_a_commit: bool = False


class Crew:
    """One thread with a database connection of its own, which does one task after the other."""

    def __init__(self, scheduler: "Scheduler", number: int) -> None:
        self.inbox: queue.SimpleQueue[Task | bool | None] = queue.SimpleQueue()
        self.scheduler = scheduler
        self.task: Task | None = None
        self.backend_pid = 0
        self.thread = threading.Thread(target=self._work, name=f"crew-{number}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        scheduler = self.scheduler
        _local.crew = self
        connect(scheduler)
        try:
            while True:
                task = self.inbox.get()
                if task is None:
                    return
                assert isinstance(task, Task)
                _local.task = self.task = task
                try:
                    task.result = task.run()
                except Crash:
                    pass
                except BaseException as error:  # noqa: BLE001 - told by whoever looks at the task
                    task.error = error
                finally:
                    _local.task = self.task = None
                    scheduler.back.put(task)
        finally:
            connection.close()
            del connections["default"]


_local = threading.local()


def current() -> Task | None:
    return getattr(_local, "task", None)


@dataclass
class Chances:
    """Per point."""

    switch: float = 0.15
    switch_in_transaction: float = 0.03
    crash: float = 0.004
    stall: float = 0.004
    database: float = 0.002
    # Seconds of the clock.
    longest_stall: float = 600.0


class Scheduler:
    def __init__(self, clock: clocks.Clock, *, crew: int = 5) -> None:
        self.clock = clock
        self.back: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self.crews = [Crew(self, number) for number in range(crew)]
        self.start(0)

    def start(self, seed: int, chances: Chances | None = None) -> None:
        self.random = random.Random(f"schedule {seed}")
        self.chances = chances or Chances()
        self.tasks: list[Task] = []
        self.trace: list[tuple[float, str, str]] = []
        self.counts: Counter[str] = Counter()
        self.in_transaction: Task | None = None
        # Statements and commits so far: while there are no more, the tables are as they were.
        self.writes = 0
        self.is_quiet = False
        self.breaches: list[str] = []
        # Rows of which a webhook told what a worker was just asking for.
        self.told_by_events: set[str] = set()
        self.on_line: Callable[[float, str, str], None] | None = None

    def close(self) -> None:
        for crew in self.crews:
            crew.inbox.put(None)
        for crew in self.crews:
            crew.thread.join(timeout=HANGS_AFTER)

    # --- What the controller does -------------------------------------------------------------------------------------

    @property
    def idle_crews(self) -> int:
        return len(self.crews) - len(self.tasks)

    def begin(self, task: Task) -> None:
        """Start a task and let it go on until it loses the baton."""
        task.crew = next(crew for crew in self.crews if all(other.crew is not crew for other in self.tasks))
        self.tasks.append(task)
        task.host.tasks.append(task)
        self.note("begins", task)
        self._give(task, task)

    def ready(self) -> list[Task]:
        return [
            task
            for task in self.tasks
            if task.state == READY and task.wake_at <= self.clock.now and (task.waits_for is None or task.waits_for())
        ]

    def next_wake(self) -> float | None:
        return min((task.wake_at for task in self.tasks if task.wake_at > self.clock.now), default=None)

    def go_on(self, task: Task) -> None:
        self._give(task, True)

    def call(self, run: Callable[[], Any], *, host: Host | None = None) -> Any:
        """Do something on a crew's thread, with nothing going wrong in it; its result."""
        task = Task("call", host or Host("operator"), run, is_calm=True)
        self.begin(task)
        while task.state != DONE:
            self.clock.move_to(task.wake_at)
            self.go_on(task)
        if task.error is not None:
            raise task.error
        return task.result

    def abandon(self) -> None:
        """End whatever is not ended; nothing of it is undone that was committed."""
        for task in list(self.tasks):
            self.kill(task.host)
        if self.tasks:
            raise Hang(f"these do not end: {[task.name for task in self.tasks]}")

    def kill(self, host: Host) -> None:
        """End all that a process does, at once."""
        host.is_dead = True
        for task in list(host.tasks):
            if task.state == READY:
                self.go_on(task)

    def _give(self, task: Task, message: "Task | bool") -> None:
        assert task.crew is not None
        task.state = RUNNING
        if task.in_transaction:
            self.in_transaction = None
        task.crew.inbox.put(message)
        self._await(task)
        # It died, and its process with it: the other threads of that process are no more, either.
        if task.crashed and not task.host.is_dead:
            self.kill(task.host)

    def _await(self, task: Task) -> None:
        """Until it has parked or ended; and whoever had to make way for it, too."""
        running, back = {task}, []
        deadline = time.monotonic() + HANGS_AFTER
        while running:
            holder = self.in_transaction
            try:
                arrived = self.back.get(timeout=ASK_AFTER if holder is not None else HANGS_AFTER)
            except queue.Empty:
                if time.monotonic() > deadline:
                    self._hang(running)
                if holder is not None and _waits_for(task, holder):
                    self._make_way(holder, task)
                    running.add(holder)
                continue
            running.discard(arrived)
            back.append(arrived)
            if arrived.blocked is not None and arrived.blocked.may_go is not None:
                arrived.blocked.may_go.set()
                arrived.blocked = None
        for each in sorted(back, key=lambda each: each is task):
            if each.state == RUNNING:
                self._ended(each)

    def _make_way(self, holder: Task, blocked: Task) -> None:
        self.counts["waited for a lock"] += 1
        self.note("waits for a lock", blocked)
        self.in_transaction = None
        holder.forced, holder.state, holder.blocked = True, RUNNING, blocked
        blocked.may_go = threading.Event()
        assert holder.crew is not None
        holder.crew.inbox.put(True)

    def _ended(self, task: Task) -> None:
        task.state = DONE
        self.tasks.remove(task)
        task.host.tasks.remove(task)
        self.note("crashed" if task.crashed else "ended", task)
        task.ended(task)

    def _hang(self, running: set[Task]) -> None:
        names = ", ".join(task.name for task in running)
        raise Hang(f"no sign of {names} for {HANGS_AFTER:.0f} real seconds; last: {self.trace[-5:]}")

    # --- What tasks do ------------------------------------------------------------------------------------------------

    def note(self, text: str, task: Task | None = None) -> None:
        task = task or current()
        who = f"{task.host.name}: {task.name}" if task is not None else "-"
        line = (round(self.clock.elapsed, 3), who, text)
        self.trace.append(line)
        if self.on_line is not None:
            self.on_line(*line)

    def park(self, until: float = 0.0) -> None:
        """Give the baton back; go on when it comes again, not before ``until`` by the clock."""
        task = current()
        assert task is not None
        task.in_transaction = is_in_transaction()
        if task.in_transaction:
            self.in_transaction = task
        # Last: from here on the controller may read everything.
        task.wake_at, task.state = until, READY
        self.back.put(task)
        assert task.crew is not None
        task.crew.inbox.get()
        task.in_transaction = False
        if task.host.is_dead:
            _die()

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """The task waits for another one of its process, without the lock that only one thread at a time needs not."""
        task = current()
        assert task is not None
        while not holds():
            task.waits_for = holds
            try:
                self.park()
            finally:
                task.waits_for = None

    def sleep(self, seconds: float) -> None:
        """The task waits for something outside: an answer, or by its own will."""
        if seconds > 0:
            self.park(self.clock.now + seconds)

    def point(self, label: str, *, may_park: bool = True, database: bool = False) -> None:
        """Here anything may happen to the task. ``database``: a statement or a commit comes next."""
        task = current()
        if task is None:
            return
        if task.crashed or task.host.is_dead:
            _die()
        self.note(label, task)
        if task.is_calm or self.is_quiet or task.forced:
            return
        chances, luck = self.chances, self.random.random()
        in_transaction = is_in_transaction()
        may_park = may_park and (not in_transaction or self.in_transaction is None)
        if luck < chances.crash:
            self.counts["crashes"] += 1
            self.counts["crashes in a transaction"] += in_transaction
            self.note("💥", task)
            _die()
        luck -= chances.crash
        if database and luck < chances.database:
            self.counts["database gone"] += 1
            self.note("database gone", task)
            self._lose_database()
        luck -= chances.database
        if not may_park:
            return
        if 0 <= luck < chances.stall:
            self._stall(task)
            return
        luck -= chances.stall
        if 0 <= luck < (chances.switch_in_transaction if in_transaction else chances.switch):
            self.park()

    def _stall(self, task: Task) -> None:
        seconds = self.chances.longest_stall * self.random.random() ** 3
        task.host.stalled += seconds
        self.counts["stalls"] += 1
        if self.random.random() < 0.3:
            # The machine slept: its monotonic clock did not count.
            task.host.suspended += seconds
        self.note(f"stands still for {seconds:.1f} s", task)
        self.park(self.clock.now + seconds)

    def _lose_database(self) -> None:
        _undo()
        raise psycopg.OperationalError("simulated: server closed the connection unexpectedly")

    # --- Around the database ------------------------------------------------------------------------------------------

    def around_statement(self, execute: Callable[[], Any], sql: Any) -> Any:
        task = current()
        if task is None or task.is_calm:
            self.writes += 1
            return execute()
        label = described(sql)
        if asks_for_the_wrong_time(sql):
            self.breaches.append(f"not by the time of the statement: {label}")
        # A host's own lock is held around these: another thread of it would wait, unknown to us.
        may_park = "requestallowance" not in label
        self.point(label, may_park=may_park, database=True)
        try:
            result = execute()
            self.writes += 1
        except DeadlockDetected:
            self.breaches.append(f"6: deadlock: {task.name}, {label}")
            raise
        finally:
            if task.may_go is not None:
                task.may_go.wait(HANGS_AFTER)
                task.may_go = None
        if label.startswith("ROLLBACK TO"):
            # Some of its locks are free already.
            self._make_way_for_others(task)
        if not is_in_transaction():
            # Committed, and nobody may have heard.
            try:
                self.point(f"{label} done", may_park=may_park, database=True)
            except psycopg.OperationalError:
                task.lost_a_commit = True
                raise
        return result

    def around_commit(self, commit: Callable[[], None]) -> None:
        task = current()
        if task is None or task.is_calm:
            commit()
            self.writes += 1
            return
        try:
            self.point("commit", database=True)
            commit()
            self.writes += 1
            self._make_way_for_others(task)
            try:
                self.point("committed", database=True, may_park=False)
            except psycopg.OperationalError:
                task.lost_a_commit = True
                raise
        except psycopg.OperationalError as error:
            raise OperationalError(*error.args) from error

    def around_rollback(self, rollback: Callable[[], None]) -> None:
        rollback()
        task = current()
        if task is not None:
            self._make_way_for_others(task)

    def _make_way_for_others(self, task: Task) -> None:
        if task.forced:
            task.forced = False
            is_dead, task.host.is_dead = task.host.is_dead, False
            try:
                self.park()
            finally:
                task.host.is_dead = task.host.is_dead or is_dead


def _undo() -> None:
    """What the server does when a connection is gone, without leaving the moment to the operating system."""
    if is_in_transaction():
        connection.connection.rollback()


def is_in_transaction() -> bool:
    """As the server sees it: Django says no already before it commits."""
    raw = connection.connection
    return raw is not None and raw.pgconn.transaction_status != TransactionStatus.IDLE


def _die() -> NoReturn:
    """Whatever the task still tries while it unwinds, it does no more."""
    task = current()
    assert task is not None
    task.crashed = True
    _undo()
    raise Crash


def _waits_for(task: Task, holder: Task) -> bool:
    assert task.crew is not None
    assert holder.crew is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s = ANY(pg_blocking_pids(%s))", [holder.crew.backend_pid, task.crew.backend_pid])
        return bool(cursor.fetchone()[0])


def connect(scheduler: Scheduler | None) -> None:
    """The thread's own connection: no pool, the simulation's clock, and a point around whatever it does; the
    controller's has no points.
    """
    settings = connections.settings["default"]
    options = {name: value for name, value in settings["OPTIONS"].items() if name != "pool"}
    wrapper = connections.create_connection("default")
    wrapper.settings_dict = {**settings, "OPTIONS": options, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False}
    init = wrapper.init_connection_state

    def init_connection_state() -> None:
        init()
        raw = wrapper.connection
        raw.execute(
            f"SET search_path = {clocks.SEARCH_PATH}; SET synchronous_commit = off; SET deadlock_timeout = '50ms'"
        )
        if not raw.autocommit:
            raw.commit()
        if scheduler is not None:
            _local.crew.backend_pid = raw.info.backend_pid
            raw.cursor_factory = _watched(raw.cursor_factory, scheduler)

    wrapper.init_connection_state = init_connection_state  # type: ignore[method-assign]
    connections["default"] = wrapper
    if scheduler is None:
        return
    commit, rollback = wrapper.commit, wrapper.rollback
    wrapper.commit = lambda: scheduler.around_commit(commit)  # type: ignore[method-assign]
    wrapper.rollback = lambda: scheduler.around_rollback(rollback)  # type: ignore[method-assign]


def _watched(cursor: Any, scheduler: Scheduler) -> Any:
    """Of the driver's cursors, and not by Django's wrappers: some of the program's statements go past these."""

    class Watched(cursor):  # type: ignore[misc]
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            return scheduler.around_statement(lambda: cursor.execute(self, query, params, **options), query)

    return Watched


@cache
def described(sql: Any) -> str:
    """The statement, or those that go together, in a few words."""
    words = " ".join(str(sql).split())
    if "SAVEPOINT" in words:
        return words.partition('"')[0].strip()
    found = [_described(each) for each in words.split("; ") if TABLE.search(each)]
    return ", ".join(found) or words[:40]


def _described(words: str) -> str:
    written = WRITTEN.search(words)
    if written:
        return f"{written[1].split()[0]} {written[2]}"
    table = TABLE.search(words)
    assert table is not None
    return f"SELECT {table[1]}" + (" and lock" if LOCKED.search(words) else "")


@cache
def asks_for_the_wrong_time(sql: Any) -> bool:
    """That of the transaction, which ends later than it was when it began; and which cannot be moved here."""
    return bool(WRONG_TIME.search(str(sql)))
