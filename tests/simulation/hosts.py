"""Worker processes: the real loop's claiming and working, one call at a time, in the scheduler's hands."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from django.conf import settings
from django.db import connection

from marketplace import slots, throttle
from marketplace.errors import DATABASE_TROUBLE
from marketplace.workers import loop, reversal, transfer_retry
from tests.simulation.scheduler import Host, Scheduler, Task, current

KINDS: dict[str, Any] = {"reversal": reversal.worker, "transfer": transfer_retry.worker}


@dataclass(eq=False)
class Process(Host):
    kind: str = "reversal"
    worker: Any = None
    allowance: throttle.RequestAllowance | None = None
    # Tasks that work on a row, at most; besides one that claims.
    threads: int = 2
    is_claiming: bool = False
    working: int = 0

    @property
    def buffered(self) -> int:
        found: int = self.worker._buffer.qsize()
        return found

    @property
    def is_stopping(self) -> bool:
        stopping: bool = self.worker._stopping.is_set()
        return stopping

    @property
    def has_stopped(self) -> bool:
        return self.is_stopping and not self.buffered and not self.tasks

    @property
    def queues(self) -> list[Any]:
        """But for the one of figures: it moves nothing, and looks at PostgreSQL's own transactions and their times."""
        return [watched for watched in self.worker._watched if watched.queue.name != "figures"]

    @property
    def may_claim(self) -> bool:
        may: bool = not self.is_dead and not self.is_claiming and self.worker._may_claim()
        return may

    @property
    def may_work(self) -> bool:
        return not self.is_dead and self.buffered > 0 and self.working < self.threads


class Turns:
    """In place of a ``threading.Condition``: who waits gives the baton back."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __enter__(self) -> None:
        """Nobody else goes on."""

    def __exit__(self, *_: object) -> None:
        """Nobody else went on."""

    def wait_for(self, holds: Callable[[], bool]) -> None:
        self._scheduler.wait_for(holds)

    def notify(self) -> None:
        """The scheduler asks by itself."""

    notify_all = notify


@contextmanager
def waiting_by(scheduler: Scheduler) -> Iterator[None]:
    """Threads of one worker wait for each other in the scheduler's hands."""
    with (
        patch.object(slots, "threading", SimpleNamespace(Condition=lambda: Turns(scheduler))),
        # For a time that nobody feels here: the scheduler says whose turn it is.
        patch.object(loop, "HAND_OVER_SECONDS", 0),
    ):
        yield


class Gate:
    """What a gateway asks before each request: the allowance of the process that calls, if it has one."""

    def enter(self, endpoint: str) -> None:
        allowance = self._of_caller()
        if allowance is not None:
            allowance.enter(endpoint)

    def limited(self, endpoint: str, reason: str) -> None:
        allowance = self._of_caller()
        if allowance is not None:
            allowance.limited(endpoint, reason)

    def _of_caller(self) -> throttle.RequestAllowance | None:
        task = current()
        return getattr(task.host, "allowance", None) if task is not None else None


def started(
    kind: str, number: int, gateway: Any, *, batch_size: int, has_allowance: bool, concurrency: int, skew: float = 0.0
) -> Process:
    worker = KINDS[kind](gateway, concurrency=concurrency, batch_size=batch_size)
    allowance = throttle.RequestAllowance(settings.STRIPE_MAX_REQUESTS_PER_SECOND) if has_allowance else None
    return Process(
        f"{kind} {number}", skew=skew, kind=kind, worker=worker, allowance=allowance, threads=concurrency + 1
    )


def claim(scheduler: Scheduler, process: Process, watched: Any) -> Task:
    """One claim of one queue, as the loop's claimer makes it."""

    def run() -> int:
        try:
            claimed: int = process.worker._claim(watched)
        except DATABASE_TROUBLE:
            connection.close()
            return 0
        if claimed:
            scheduler.counts[f"claimed: {watched.queue.name}"] += claimed
        scheduler.note(f"claimed {claimed}")
        return claimed

    def ended(task: Task) -> None:
        process.is_claiming = False

    process.is_claiming = True
    return Task(f"claims {watched.queue.name}", process, run, ended=ended)


def work(scheduler: Scheduler, process: Process) -> Task:
    """One row of the buffer, as one of the loop's threads takes it up."""
    held = process.worker._buffer.get_nowait()

    def ended(task: Task) -> None:
        process.working -= 1
        methods = [method for method, path in task.requests if path != "/v1/balance"]
        if methods[:1] == ["GET"]:
            scheduler.counts["looked first, then sent" if "POST" in methods else "looked first, did not send"] += 1

    process.working += 1
    name = f"{held.queue.name} {key_of(held.claimed)}"
    return Task(name, process, functools.partial(process.worker._perform, held), ended=ended)


def key_of(claimed: Any) -> Any:
    return claimed.transfer.pk if hasattr(claimed, "transfer") else claimed.pk
